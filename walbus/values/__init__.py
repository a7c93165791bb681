"""Values: what a PostgreSQL column is in Avro, Python, text and JSON.

PostgreSQL's text form under `walbus.session.SESSION_SETTINGS` is the canonical one. A row enters as the texts of its
columns, is stored as one Avro record, and leaves in the form that the reader wants; what Avro or Python cannot hold
stays the text that it was. `docs/values.md` has the table of all types.

    text ── from_text ──► encode ──► Avro ──► decode ──► Python
                                       ├────► to_text ─► text
                                       ├────► json_form ► JSON
                                       └────► merge ───► Avro, with unchanged TOAST columns filled in

`types` is the table that ties the forms of each type together; `key_codec` makes keys whose bytes sort as values do.
"""

from __future__ import annotations

from walbus.values.decode import decode_row, row_texts
from walbus.values.encode import RowEncoder, row_encoder
from walbus.values.json_form import json_puts, row_json
from walbus.values.merge import merge_unchanged
from walbus.values.schema_form import avro_schema

__all__ = [
    "RowEncoder", "avro_schema", "decode_row", "json_puts", "merge_unchanged", "row_encoder", "row_json", "row_texts",
]  # fmt: skip
