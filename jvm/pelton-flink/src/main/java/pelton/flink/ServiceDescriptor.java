package pelton.flink;

import java.io.IOException;
import java.io.Serializable;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;

/**
 * A service as a job declares it: the same declaration as on the embedded host, and what starts its instances (FLIP-582: {@code
 * RosDescriptor}). Immutable; travels with the job.
 */
public final class ServiceDescriptor implements Serializable {
    private static final long serialVersionUID = 1;
    private static final Duration LEASE = Duration.ofSeconds(30);

    private final String id;
    private final String declaration;
    private final List<String> program;
    private final Duration lease;

    private ServiceDescriptor(String id, String declaration, List<String> program, Duration lease) {
        this.id = id;
        this.declaration = declaration;
        this.program = List.copyOf(program);
        this.lease = lease;
    }

    /**
     * @param id who names the same id, with the same declaration, shares its instances on a machine: this job after a restart, and others
     * @param declaration the text of the declaration's TOML file
     */
    public static ServiceDescriptor of(String id, String declaration) {
        return new ServiceDescriptor(id, declaration, List.of(), LEASE);
    }

    /** The same, from a file, which is read now. */
    public static ServiceDescriptor fromFile(String id, Path file) throws IOException {
        return of(id, Files.readString(file, StandardCharsets.UTF_8));
    }

    /**
     * The command that an instance is started with on each machine, if the declaration names none: a program of yours that declares the
     * service, or {@code pelton instance}.
     */
    public ServiceDescriptor program(String... command) {
        return new ServiceDescriptor(id, declaration, List.of(command), lease);
    }

    /** How long instances wait for a job that was killed or stopped; 30 s unless it is said. */
    public ServiceDescriptor lease(Duration lease) {
        return new ServiceDescriptor(id, declaration, program, lease);
    }

    String id() {
        return id;
    }

    /** What the native library is told, with the folder for logs on this machine. */
    byte[] order() {
        return Native.utf8(orderJson());
    }

    String orderJson() {
        return "{\"pool\":" + Json.quote(id)
                + ",\"declaration\":" + Json.quote(declaration)
                + ",\"program\":" + Json.quote(program)
                + ",\"logs\":" + Json.quote(Agent.logs())
                + ",\"lease_millis\":" + lease.toMillis() + "}";
    }
}
