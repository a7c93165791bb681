import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import org.apache.avro.Schema;
import org.apache.avro.SchemaCompatibility;

/** Reads pairs of lines, a reader's schema and a writer's, and says of each pair whether the one can read the other. */
public final class AvroJudge {
    private AvroJudge() {}

    public static void main(String[] arguments) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String reader = lines.readLine(); reader != null; reader = lines.readLine()) {
            Schema first = new Schema.Parser().parse(reader);
            Schema second = new Schema.Parser().parse(lines.readLine());
            System.out.println(SchemaCompatibility.checkReaderWriterCompatibility(first, second).getType());
        }
    }
}
