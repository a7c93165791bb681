import io.debezium.embedded.Connect;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.RecordChangeEvent;
import io.debezium.engine.format.ChangeEventFormat;
import java.io.FileReader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.Executors;
import org.apache.kafka.connect.source.SourceRecord;

/**
 * Debezium's engine at its cheapest: records arrive as Kafka Connect's own objects, nothing is serialized, nothing is
 * written, and the consumer only counts. Writes the second file when it has seen as many changes as it was told.
 *
 * <p>Usage: java DebeziumCount PROPERTIES ROWS DONE
 */
public final class DebeziumCount {
    private static long seen;

    private DebeziumCount() {}

    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        try (FileReader reader = new FileReader(arguments[0])) {
            properties.load(reader);
        }
        long rows = Long.parseLong(arguments[1]);
        Path done = Path.of(arguments[2]);
        DebeziumEngine<RecordChangeEvent<SourceRecord>> engine =
                DebeziumEngine.create(ChangeEventFormat.of(Connect.class))
                        .using(properties)
                        .using((success, message, error) -> failed(success, message, error))
                        .notifying((records, committer) -> count(records, committer, rows, done))
                        .build();
        Executors.newSingleThreadExecutor().execute(engine);
    }

    private static void count(
            List<RecordChangeEvent<SourceRecord>> records,
            DebeziumEngine.RecordCommitter<RecordChangeEvent<SourceRecord>> committer,
            long rows,
            Path done)
            throws InterruptedException {
        for (RecordChangeEvent<SourceRecord> record : records) {
            committer.markProcessed(record);
        }
        committer.markBatchFinished();
        seen += records.size();
        if (seen >= rows) {
            try {
                Files.writeString(done, Long.toString(seen));
            } catch (java.io.IOException error) {
                throw new IllegalStateException(error);
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
