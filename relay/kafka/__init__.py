"""The Kafka engine: the relay log on an Apache Kafka cluster, for those who outgrow one machine.

What lies where (`TOPIC` is `relay.kafka.topic`; each has one partition, which is what makes it one order):

    TOPIC         the log: a message is a block of whole records, the very bytes of the file engine
    TOPIC.large   transactions that are larger than memory, on their way; the log names what of it counts
    TOPIC.meta    compacted: which log this is, who writes it, the table layouts

The way of a record: `writer` gives it its seq as the file engine does (`walbus.relay.sequence`), `messages` cuts blocks
and oversized records to what the broker takes, each under a `mark` that says what is known before and behind it,
`transactions` sends them under a transactional id, and finds out what became of a commit whose answer was lost.
Readers (`reader`, `cursor`) see what is committed, and find their way by the marks (`partition`).

`topics` makes the topics or checks them, `layouts` keeps the layouts, `lock` lets one writer in at a time, `engine`
puts all of it together. Who comes in all the same fences the one before: Kafka refuses the zombie's commit.

`trimming` drops what is old, but nothing that a hold needs: `hold` is that of a bootstrap which reads the cluster,
`held_offset` what others see of it, and `followed` the log as that bootstrap reads it.
"""

from walbus.relay.kafka.engine import open_kafka_reader, open_kafka_writer

__all__ = ["open_kafka_reader", "open_kafka_writer"]
