import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.http.HttpServerTransport;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.transport.Netty4Plugin;

/**
 * One Elasticsearch node on the loopback: no security plugin, no other module than the one that speaks HTTP.
 *
 * <p>Usage: java ElasticsearchNode FOLDER PORT [SETTING=VALUE...]; port 0 is any. Says "listens on PORT" once it answers.
 */
public final class ElasticsearchNode extends Node {
    private ElasticsearchNode(Environment environment) {
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
        ElasticsearchNode node = new ElasticsearchNode(environment);
        node.start();
        int port = node.injector().getInstance(HttpServerTransport.class).boundAddress().publishAddress().getPort();
        System.out.println("listens on " + port);
        System.out.flush();
        new CountDownLatch(1).await();
    }
}
