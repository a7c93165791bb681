import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.Json;
import java.io.FileReader;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Debezium's engine, its JSON sent to one topic of Kafka as it comes, with acknowledgement by all copies; offsets stay
 * in memory. Writes the third file when as many changes as it was told were acknowledged.
 *
 * <p>Usage: java DebeziumKafka PROPERTIES ROWS DONE BOOTSTRAP TOPIC
 */
public final class DebeziumKafka {
    private static final AtomicLong acknowledged = new AtomicLong();

    private DebeziumKafka() {}

    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        try (FileReader reader = new FileReader(arguments[0])) {
            properties.load(reader);
        }
        long rows = Long.parseLong(arguments[1]);
        Path done = Path.of(arguments[2]);
        String topic = arguments[4];
        KafkaProducer<String, String> producer = producer(arguments[3]);
        DebeziumEngine<ChangeEvent<String, String>> engine =
                DebeziumEngine.create(Json.class)
                        .using(properties)
                        .using((success, message, error) -> failed(success, message, error))
                        .notifying((records, committer) -> send(records, committer, producer, topic, rows, done))
                        .build();
        Executors.newSingleThreadExecutor().execute(engine);
    }

    private static KafkaProducer<String, String> producer(String bootstrap) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        properties.put("acks", "all");
        return new KafkaProducer<>(properties, new StringSerializer(), new StringSerializer());
    }

    private static void send(
            List<ChangeEvent<String, String>> records,
            DebeziumEngine.RecordCommitter<ChangeEvent<String, String>> committer,
            KafkaProducer<String, String> producer,
            String topic,
            long rows,
            Path done)
            throws InterruptedException {
        for (ChangeEvent<String, String> record : records) {
            producer.send(
                    new ProducerRecord<>(topic, record.key(), record.value()), (sent, error) -> count(error, rows, done));
            committer.markProcessed(record);
        }
        committer.markBatchFinished();
    }

    private static void count(Exception error, long rows, Path done) {
        if (error != null) {
            failed(false, "a record was not taken", error);
        }
        if (acknowledged.incrementAndGet() == rows) {
            try {
                Files.writeString(done, Long.toString(rows));
            } catch (IOException unwritable) {
                failed(false, "the file cannot be written", unwritable);
            }
        }
    }

    private static void failed(boolean success, String message, Throwable error) {
        if (!success) {
            System.err.println(message + ": " + error);
            System.exit(1);
        }
    }
}
