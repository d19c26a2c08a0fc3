package pelton.flink;

import java.io.IOException;
import org.apache.flink.api.common.TaskInfo;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.connector.sink2.Sink;
import org.apache.flink.api.connector.sink2.SinkWriter;
import org.apache.flink.api.connector.sink2.WriterInitContext;
import org.apache.flink.util.OutputTag;

/** Gets nothing, and so hears of nothing but the end of a call's input, behind its last answer: the service is told. */
final class EndSink implements Sink<Byte> {
    private static final long serialVersionUID = 1;
    static final OutputTag<Byte> NOTHING = new OutputTag<>("pelton-nothing", Types.BYTE);
    private static final long AGENT_MILLIS = 60_000;
    private static final long AGAIN_MILLIS = 50;

    private final CallSite site;

    EndSink(CallSite site) {
        this.site = site;
    }

    @Override
    public SinkWriter<Byte> createWriter(WriterInitContext context) {
        TaskInfo task = context.getTaskInfo();
        CallEnded ended = new CallEnded(site.run(), site.name(), task.getIndexOfThisSubtask(), task.getNumberOfParallelSubtasks());
        return new SinkWriter<>() {
            @Override
            public void write(Byte nothing, Context context) {}

            @Override
            public void flush(boolean endOfInput) throws IOException, InterruptedException {
                if (endOfInput) {
                    tell(ended);
                }
            }

            @Override
            public void close() {}
        };
    }

    private void tell(CallEnded ended) throws IOException, InterruptedException {
        for (long waited = 0; !Native.tell(site.service().order(), Native.utf8(ended.text())); waited += AGAIN_MILLIS) {
            if (waited > AGENT_MILLIS) {
                throw new IOException("the agent of service " + site.service().id() + " was not there for " + AGENT_MILLIS
                        + " ms, and was not told that call " + site.name() + " has ended");
            }
            Thread.sleep(AGAIN_MILLIS);
        }
    }
}
