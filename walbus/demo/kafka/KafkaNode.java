import java.nio.file.Files;
import java.nio.file.Path;

/**
 * One Apache Kafka node in KRaft mode, whose folder is formatted first if it is new: both in one JVM, which halves the start.
 *
 * <p>Usage: java KafkaNode PROPERTIES FOLDER CLUSTER; the folder is the `log.dirs` of the properties.
 */
public final class KafkaNode {
    private KafkaNode() {}

    public static void main(String[] arguments) throws Exception {
        if (!Files.exists(Path.of(arguments[1], "meta.properties"))) {
            String[] format = {"format", "-t", arguments[2], "-c", arguments[0]};
            int code = kafka.tools.StorageTool.execute(format, System.err);
            if (code != 0) {
                System.exit(code);
            }
        }
        kafka.Kafka.main(new String[] {arguments[0]});
    }
}
