package pelton.flink;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.concurrent.TimeUnit;

/** Starts the agent of a machine: a process that outlives this one. */
final class Agent {
    private Agent() {}

    /** Where this process logs to, and so the instances: Flink says it in a property. */
    static String logs() {
        String log = System.getProperty("log.file");
        Path folder = log == null ? null : Path.of(log).toAbsolutePath().getParent();
        return (folder == null ? Path.of(System.getProperty("java.io.tmpdir")) : folder).toString();
    }

    /**
     * Gives the order to a new agent, and returns when it is on its own. Through Java's own way of starting processes, which lets nothing of
     * this process's sockets and files into the other, where they would stay open.
     */
    static void start(byte[] order) throws IOException, InterruptedException {
        File log = new File(logs(), "pelton-agent.log");
        ProcessBuilder builder = new ProcessBuilder(program().toString());
        builder.redirectOutput(ProcessBuilder.Redirect.appendTo(log)).redirectErrorStream(true);
        Process process = builder.start();
        try (OutputStream stdin = process.getOutputStream()) {
            stdin.write(order);
        }
        // It starts itself once more, and ends.
        if (!process.waitFor(30, TimeUnit.SECONDS) || process.exitValue() != 0) {
            process.destroyForcibly();
            throw new IOException("the agent could not be started; its log is " + log);
        }
    }

    /** The agent's program, on disk once for each build of it. */
    private static Path program() throws IOException {
        Path folder = Path.of(new String(Native.folder(), StandardCharsets.UTF_8), "programs");
        byte[] content;
        try (InputStream resource = Native.resource("pelton-agent")) {
            content = resource.readAllBytes();
        }
        Path program = folder.resolve("agent-" + digest(content));
        if (!Files.exists(program)) {
            Files.createDirectories(folder);
            Path draft = Files.createTempFile(folder, "agent", ".tmp");
            Files.write(draft, content);
            Files.setPosixFilePermissions(draft, PosixFilePermissions.fromString("rwx------"));
            Files.move(draft, program, StandardCopyOption.ATOMIC_MOVE);
        }
        return program;
    }

    private static String digest(byte[] content) {
        try {
            byte[] digest = MessageDigest.getInstance("SHA-256").digest(content);
            return HexFormat.of().formatHex(digest, 0, 8);
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException(e);
        }
    }
}
