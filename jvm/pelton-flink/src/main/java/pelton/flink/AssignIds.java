package pelton.flink;

import java.util.concurrent.ThreadLocalRandom;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.api.java.tuple.Tuple3;

/**
 * Gives each row the id that its request has from now on, over restarts: it is part of what the operator behind this keeps. The group is drawn
 * anew whenever this starts, so that no id is given twice.
 */
final class AssignIds<T> extends RichMapFunction<T, Tuple3<Long, Long, T>> {
    private static final long serialVersionUID = 1;

    private transient long group;
    private transient long sequence;

    @Override
    public void open(OpenContext context) {
        group = ThreadLocalRandom.current().nextLong();
        sequence = 0;
    }

    @Override
    public Tuple3<Long, Long, T> map(T row) {
        return Tuple3.of(group, sequence++, row);
    }
}
