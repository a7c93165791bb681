"""`python -m walbus` is the command `walbus`."""

from __future__ import annotations

from walbus.cli import main

if __name__ == "__main__":
    main()
