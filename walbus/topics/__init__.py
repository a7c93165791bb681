"""Table topics: what a table's rows are in Kafka, and the Avro schemas by which any reader knows them. No I/O.

    names     tables to topics, topics to subjects
    forms     layouts to Avro schemas: of keys, of rows
    catalog   the subjects, versions and ids of a log's layouts
    records   keys and rows to records
    rows      windows of changes to records
    ends      what a record of a transaction's end says

The bytes are in the Confluent wire format: a zero byte, the schema's id (4 bytes, big-endian), Avro. docs/kafka.md says
what a topic holds.
"""

from __future__ import annotations

from walbus.topics.catalog import Catalog, LogIds, Registered
from walbus.topics.names import TopicNames
from walbus.topics.records import Cause, RecordMaker, SchemaIds, TopicRecord
from walbus.topics.rows import TableTopics

__all__ = [
    "Catalog",
    "Cause",
    "LogIds",
    "RecordMaker",
    "Registered",
    "SchemaIds",
    "TableTopics",
    "TopicNames",
    "TopicRecord",
]
