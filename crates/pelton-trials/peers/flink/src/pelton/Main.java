package pelton;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import org.apache.flink.runtime.checkpoint.AbstractCheckpointStats;
import org.apache.flink.runtime.checkpoint.CheckpointStatsStatus;

/** What `cargo xtask bench recovery --peers flink` starts. Each part prints one JSON object on standard output. */
public final class Main {
    private static final Duration PATIENCE = Duration.ofSeconds(120);

    public static void main(String[] words) throws Exception {
        if (words.length == 0) {
            throw new IllegalArgumentException("say what to do: checkpoints, fail or run");
        }
        Options options = Options.parse(words, 1);
        try (Cluster cluster = Cluster.start(options)) {
            switch (words[0]) {
                case "checkpoints" -> checkpoints(options, cluster);
                case "fail" -> fail(options, cluster);
                case "run" -> run(options, cluster);
                default -> throw new IllegalArgumentException("there is no part " + words[0]);
            }
        }
        // Threads of Flink may linger.
        System.exit(0);
    }

    /** Checkpoints that ended when all calls ran and the queues before them had had a second to fill. */
    private static void checkpoints(Options options, Cluster cluster) throws Exception {
        cluster.until(PATIENCE, "all calls run", () -> Notes.running.get() >= options.inFlight());
        Thread.sleep(1000);
        long begun = System.currentTimeMillis();
        Thread.sleep(options.seconds() * 1000);
        long now = System.currentTimeMillis();
        List<AbstractCheckpointStats> all = cluster.checkpoints().getHistory().getCheckpoints();
        List<AbstractCheckpointStats> counted =
                all.stream()
                        .filter(one -> one.getTriggerTimestamp() + one.getEndToEndDuration() >= begun)
                        .toList();
        List<AbstractCheckpointStats> completed = with(CheckpointStatsStatus.COMPLETED, counted);
        // From the trigger in the coordinator until the last subtask has acknowledged it.
        long[] took = completed.stream().mapToLong(AbstractCheckpointStats::getEndToEndDuration).sorted().toArray();
        long largest = completed.stream().mapToLong(AbstractCheckpointStats::getStateSize).max().orElse(0);
        long running =
                with(CheckpointStatsStatus.IN_PROGRESS, all).stream()
                        .mapToLong(one -> now - one.getTriggerTimestamp())
                        .max()
                        .orElse(0);
        System.out.printf(
                Locale.ROOT,
                "{\"part\":\"checkpoints\",\"completed\":%d,\"failed\":%d,\"median_ms\":%s,\"longest_ms\":%s,"
                        + "\"largest_bytes\":%d,\"running_ms\":%d}%n",
                took.length,
                with(CheckpointStatsStatus.FAILED, counted).size(),
                took.length == 0 ? "null" : Long.toString(took[took.length / 2]),
                took.length == 0 ? "null" : Long.toString(took[took.length - 1]),
                largest,
                running);
    }

    private static List<AbstractCheckpointStats> with(
            CheckpointStatsStatus status, List<AbstractCheckpointStats> all) {
        return all.stream().filter(one -> one.getStatus() == status).toList();
    }

    /** The job fails once inside of a cluster that stays. */
    private static void fail(Options options, Cluster cluster) throws Exception {
        finish(options, cluster);
        System.out.printf(
                Locale.ROOT,
                "{\"part\":\"fail\",\"rows\":%d,\"executed\":%d,\"first_answer_ms\":%.1f}%n",
                options.rows(),
                Notes.executed.get(),
                (Notes.answeredAfterFailure.get() - Notes.failed.get()) / 1e6);
    }

    /** Until every row has an answer, whichever process gave it. */
    private static void run(Options options, Cluster cluster) throws Exception {
        finish(options, cluster);
        System.out.printf(Locale.ROOT, "{\"part\":\"run\",\"rows\":%d}%n", options.rows());
    }

    private static void finish(Options options, Cluster cluster) throws Exception {
        Duration limit = PATIENCE.plusMillis(3 * options.call());
        cluster.until(limit, "an answer for every row", () -> answered(options).size() == options.rows());
    }

    private static Set<String> answered(Options options) {
        try {
            Path file = options.path(Notes.ANSWERED);
            return Files.exists(file) ? new HashSet<>(Files.readAllLines(file)) : Set.of();
        } catch (IOException e) {
            throw new IllegalStateException(e);
        }
    }
}
