"""Table topics: what a table's rows are in Kafka, and the Avro schemas by which any reader knows them. No I/O.

    names     tables to topics, topics to subjects
    forms     layouts to Avro schemas: of keys, of rows
    catalog   the subjects, versions and ids of a log's layouts

The bytes are in the Confluent wire format: a zero byte, the schema's id (4 bytes, big-endian), Avro. docs/kafka.md says
what a topic holds.
"""

from __future__ import annotations

from walbus.topics.catalog import Catalog, Registered
from walbus.topics.names import TopicNames

__all__ = ["Catalog", "Registered", "TopicNames"]
