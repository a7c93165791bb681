"""The template of `walbus`'s processes, as a program; see `started_copy.py`. It ends with the tests that started it.

It runs no thread, and opens nothing before it forks: a copy has what a process has that was started for real.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

#: What the template loads; a command loads the rest by itself.
_LOADED = (
    "walbus.cli.application",
    "walbus.cli.bootstrap",
    "walbus.cli.capture",
    "walbus.cli.consume",
    "walbus.cli.relay",
    "walbus.cli.run",
    "walbus.cli.snapshot",
    "walbus.cli.verify",
    "walbus.bootstrap",
    "walbus.bootstrap.verify_requests",
    "walbus.capture",
    "walbus.relay.server",
    "walbus.relay.promotion",
    "walbus.consumers",
    "walbus.consumers.runner",
    "walbus.consumers.sinks.sqlite",
)
_MESSAGE = 1 << 16


def _load() -> None:
    for name in _LOADED:
        import_module(name)
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, f"{len(threads)} threads: a copy would have one of them"
    gc.collect()
    gc.freeze()


def _serve(tests: socket.socket) -> list[str]:
    """Makes copies until the tests are gone (BrokenPipeError, if they are while it tells them something).

    Returns:
        in each copy, its arguments.
    """
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        readable, _, _ = select.select([tests, wake], [], [])  # noqa: TID251  (it has few of them)
        if wake in readable:
            os.read(wake, 4096)
            _tell_ends(tests)
        if tests in readable:
            request, descriptors, _, _ = socket.recv_fds(tests, _MESSAGE, 3)
            if not request:
                os._exit(0)
            arguments, folder, constants = json.loads(request)
            pid = os.fork()
            if not pid:
                _become(folder, descriptors)
                _change(constants)
                return list(arguments)
            for descriptor in descriptors:
                os.close(descriptor)
            tests.send(json.dumps(["started", pid, 0]).encode())


def _tell_ends(tests: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        tests.send(json.dumps(["ended", pid, os.waitstatus_to_exitcode(status)]).encode())


def _become(folder: str, descriptors: Sequence[int]) -> None:
    """What the kernel and the interpreter do for a process that is started for real."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.chdir(folder)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _change(constants: Mapping[str, float]) -> None:
    """Gives constants of modules, by their full names, other values."""
    for name, value in constants.items():
        module, _, constant = name.rpartition(".")
        loaded = import_module(module)
        assert hasattr(loaded, constant), f"there is no {name}"
        setattr(loaded, constant, value)


def _main() -> NoReturn:
    tests = socket.socket(fileno=int(sys.argv[1]))
    _load()
    try:
        arguments = _serve(tests)
    except BrokenPipeError:
        os._exit(0)
    tests.detach()
    from walbus.cli import main

    sys.argv[1:] = arguments
    main()


if __name__ == "__main__":
    _main()
