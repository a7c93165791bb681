import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import org.opensearch.common.settings.Settings;
import org.opensearch.env.Environment;
import org.opensearch.http.HttpServerTransport;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.transport.Netty4Plugin;

/**
 * One OpenSearch node on the loopback: no security plugin, no other module than the one that speaks HTTP.
 *
 * <p>Usage: java OpenSearchNode FOLDER PORT [SETTING=VALUE...]; port 0 is any. Says "listens on PORT" once it answers.
 */
public final class OpenSearchNode extends Node {
    private OpenSearchNode(Environment environment) {
        super(environment, List.of(Netty4Plugin.class), false);
    }

    public static void main(String[] arguments) throws Exception {
        Path home = Path.of(arguments[0]);
        Settings.Builder settings =
                Settings.builder()
                        .put("path.home", home)
                        .put("cluster.name", "walbus-tests")
                        .put("network.host", "127.0.0.1")
                        .put("http.port", arguments[1])
                        .put("http.type", "netty4")
                        .put("transport.port", "0")
                        .put("transport.type", "netty4")
                        .put("discovery.type", "single-node")
                        .put("cluster.routing.allocation.disk.threshold_enabled", false);
        for (int at = 2; at < arguments.length; at++) {
            String[] setting = arguments[at].split("=", 2);
            settings.put(setting[0], setting[1]);
        }
        Environment environment =
                InternalSettingsPreparer.prepareEnvironment(
                        settings.build(), Map.of(), home.resolve("config"), () -> "walbus-tests");
        OpenSearchNode node = new OpenSearchNode(environment);
        node.start();
        int port = node.injector().getInstance(HttpServerTransport.class).boundAddress().publishAddress().getPort();
        System.out.println("listens on " + port);
        System.out.flush();
        new CountDownLatch(1).await();
    }
}
