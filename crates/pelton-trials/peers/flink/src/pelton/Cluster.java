package pelton;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Comparator;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;
import org.apache.flink.api.common.JobID;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.connector.source.lib.NumberSequenceSource;
import org.apache.flink.api.connector.source.lib.NumberSequenceSource.NumberSequenceSplit;
import org.apache.flink.api.connector.source.util.ratelimit.RateLimiter;
import org.apache.flink.api.connector.source.util.ratelimit.RateLimiterStrategy;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.ExternalizedCheckpointRetention;
import org.apache.flink.configuration.MemorySize;
import org.apache.flink.configuration.RestartStrategyOptions;
import org.apache.flink.configuration.StateRecoveryOptions;
import org.apache.flink.configuration.TaskManagerOptions;
import org.apache.flink.configuration.WebOptions;
import org.apache.flink.connector.datagen.source.DataGeneratorSource;
import org.apache.flink.connector.datagen.source.GeneratorFunction;
import org.apache.flink.runtime.checkpoint.CheckpointStatsSnapshot;
import org.apache.flink.runtime.minicluster.MiniCluster;
import org.apache.flink.runtime.minicluster.MiniClusterConfiguration;
import org.apache.flink.streaming.api.datastream.AsyncDataStream;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;

/** A cluster in this process, a task manager for each subtask, and the job on it: rows, exchange, calls, counted answers. */
final class Cluster implements AutoCloseable {
    private static final int HISTORY = 10_000;

    private final MiniCluster cluster;
    private final JobID job;

    private Cluster(MiniCluster cluster, JobID job) {
        this.cluster = cluster;
        this.job = job;
    }

    static Cluster start(Options options) throws Exception {
        Path checkpoints = options.path("checkpoints");
        Configuration settings = new Configuration();
        settings.set(CheckpointingOptions.CHECKPOINTING_INTERVAL, Duration.ofMillis(options.interval()));
        settings.set(CheckpointingOptions.CHECKPOINT_STORAGE, "filesystem");
        settings.set(CheckpointingOptions.CHECKPOINTS_DIRECTORY, checkpoints.toUri().toString());
        settings.set(CheckpointingOptions.ENABLE_UNALIGNED, options.unaligned());
        settings.set(
                CheckpointingOptions.EXTERNALIZED_CHECKPOINT_RETENTION,
                ExternalizedCheckpointRetention.RETAIN_ON_CANCELLATION);
        settings.set(RestartStrategyOptions.RESTART_STRATEGY, "fixed-delay");
        settings.set(RestartStrategyOptions.RESTART_STRATEGY_FIXED_DELAY_ATTEMPTS, 3);
        settings.set(RestartStrategyOptions.RESTART_STRATEGY_FIXED_DELAY_DELAY, Duration.ofMillis(500));
        settings.set(TaskManagerOptions.MANAGED_MEMORY_SIZE, MemorySize.ofMebiBytes(32));
        settings.set(WebOptions.CHECKPOINTS_HISTORY_SIZE, HISTORY);
        Optional<Path> retained = newest(checkpoints);
        if (retained.isPresent()) {
            settings.set(StateRecoveryOptions.SAVEPOINT_PATH, retained.get().toUri().toString());
            Notes.add(options.path(Notes.RESTORED), retained.get());
        }

        MiniCluster cluster =
                new MiniCluster(
                        new MiniClusterConfiguration.Builder()
                                .setConfiguration(settings)
                                .setNumTaskManagers(options.parallelism())
                                .setNumSlotsPerTaskManager(1)
                                .withRandomPorts()
                                .build());
        cluster.start();
        StreamExecutionEnvironment env = StreamExecutionEnvironment.getExecutionEnvironment(settings);
        env.setParallelism(options.parallelism());
        declare(env, options);
        return new Cluster(
                cluster, cluster.submitJob(env.getStreamGraph().getJobGraph()).get(60, TimeUnit.SECONDS).getJobID());
    }

    private static void declare(StreamExecutionEnvironment env, Options options) {
        TypeInformation<Tuple2<Long, byte[]>> row =
                Types.TUPLE(Types.LONG, Types.PRIMITIVE_ARRAY(Types.BYTE));
        int payload = options.payload();
        DataStream<Tuple2<Long, byte[]>> rows =
                env.fromSource(
                                new NumberSequenceSource(0, options.rows() - 1),
                                WatermarkStrategy.noWatermarks(),
                                "rows")
                        .uid("rows")
                        .map(id -> Tuple2.of(id, new byte[payload]))
                        .uid("payload")
                        .returns(row);
        // Never gives anything. At the end of its input the asynchronous operator takes no checkpoints while calls run; with this
        // input the end does not come.
        GeneratorFunction<Long, Tuple2<Long, byte[]>> nothing = id -> Tuple2.of(-1L, new byte[0]);
        DataStream<Tuple2<Long, byte[]>> open =
                env.fromSource(
                                new DataGeneratorSource<>(nothing, Long.MAX_VALUE, new Never(), row),
                                WatermarkStrategy.noWatermarks(),
                                "open")
                        .uid("open");
        AsyncDataStream.unorderedWait(
                        rows.rebalance().union(open.rebalance()),
                        new Calls(options),
                        1,
                        TimeUnit.HOURS,
                        options.share(options.capacity()))
                .uid("calls")
                .returns(Types.LONG)
                .map(new Answers(options))
                .uid("answers")
                .sinkTo(new DiscardingSink<>())
                .uid("nowhere");
    }

    private static final class Never implements RateLimiterStrategy<NumberSequenceSplit> {
        @Override
        public RateLimiter<NumberSequenceSplit> createRateLimiter(int parallelism) {
            return new RateLimiter<>() {
                @Override
                public CompletionStage<Void> acquire(int requests) {
                    return new CompletableFuture<>();
                }
            };
        }
    }

    /** The newest complete checkpoint of any earlier process. */
    private static Optional<Path> newest(Path checkpoints) throws IOException {
        if (!Files.isDirectory(checkpoints)) {
            return Optional.empty();
        }
        try (var paths = Files.walk(checkpoints, 3)) {
            return paths.filter(path -> path.endsWith("_metadata"))
                    .max(Comparator.comparingLong(path -> path.toFile().lastModified()))
                    .map(Path::getParent);
        }
    }

    CheckpointStatsSnapshot checkpoints() throws Exception {
        return cluster.getExecutionGraph(job).get(60, TimeUnit.SECONDS).getCheckpointStatsSnapshot();
    }

    /** Waits until it is so. */
    void until(Duration limit, String what, BooleanSupplier so) throws Exception {
        long end = System.nanoTime() + limit.toNanos();
        while (!so.getAsBoolean()) {
            if (cluster.getJobStatus(job).get(60, TimeUnit.SECONDS).isGloballyTerminalState()) {
                var why = cluster.requestJobResult(job).get(60, TimeUnit.SECONDS).getSerializedThrowable();
                throw new IllegalStateException("the job ended before " + what, why.orElse(null));
            }
            if (System.nanoTime() > end) {
                throw new IllegalStateException("not within " + limit.toSeconds() + " s: " + what);
            }
            Thread.sleep(5);
        }
    }

    @Override
    public void close() throws Exception {
        cluster.closeAsync().get(60, TimeUnit.SECONDS);
    }
}
