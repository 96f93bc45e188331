import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.neo4j.dbms.api.DatabaseManagementService;
import org.neo4j.dbms.api.DatabaseManagementServiceBuilder;

/**
 * The community server's kernel with its Bolt connector, without the HTTP part.
 *
 * Arguments: HOME CONF READY. READY is written once clients can log in with NEO4J_PASSWORD.
 */
public class Server {
    public static void main(String[] args) throws Exception {
        Path home = Path.of(args[0]);
        Path conf = Path.of(args[1]);
        Path ready = Path.of(args[2]);

        DatabaseManagementService dbms =
                new DatabaseManagementServiceBuilder(home).loadPropertiesFromFile(conf).build();
        Runtime.getRuntime().addShutdownHook(new Thread(dbms::shutdown));

        // A new store has the password "neo4j", which must be changed at the first login. The mark says that this
        // store's password is ours already: planning and running the statement takes a while.
        Path mark = home.resolve("password-set");
        if (!Files.exists(mark)) {
            try (var tx = dbms.database("system").beginTx()) {
                tx.execute(
                        "ALTER USER neo4j SET PASSWORD $password CHANGE NOT REQUIRED",
                        Map.of("password", System.getenv("NEO4J_PASSWORD")));
                tx.commit();
            }
            Files.createFile(mark);
        }
        if (!dbms.database("neo4j").isAvailable(60_000)) {
            throw new IllegalStateException("the database neo4j did not become available");
        }

        Files.writeString(ready, "ready\n");
        System.out.println("ready");
        Thread.currentThread().join();
    }
}
