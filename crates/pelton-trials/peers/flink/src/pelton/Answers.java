package pelton;

import org.apache.flink.api.common.functions.RichMapFunction;

/** Counts what comes out, and fails once if it shall. */
final class Answers extends RichMapFunction<Long, Long> {
    private final Options options;

    Answers(Options options) {
        this.options = options;
    }

    @Override
    public Long map(Long score) {
        boolean again = getRuntimeContext().getTaskInfo().getAttemptNumber() > 0;
        if (again) {
            Notes.answeredAfterFailure.compareAndSet(0, System.nanoTime());
        }
        int answered = Notes.answered.incrementAndGet();
        if (answered == options.failAfter() && !again) {
            Notes.failed.set(System.nanoTime());
            throw new IllegalStateException("the failure that is measured");
        }
        Notes.add(options.path(Notes.ANSWERED), score / 3);
        return score;
    }
}
