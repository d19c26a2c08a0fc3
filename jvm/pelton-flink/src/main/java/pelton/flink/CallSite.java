package pelton.flink;

import java.io.Serializable;
import java.util.List;

/** What all subtasks of a call know. */
record CallSite(ServiceDescriptor service, String run, String name, String method, List<String> columns, int limit, Long timeoutMillis)
        implements Serializable {

    CallSite {
        columns = List.copyOf(columns);
    }

    /** What a client is made of. */
    byte[] settings(String scope, int subtask, long epoch) {
        return Native.utf8("{\"order\":" + service.orderJson()
                + ",\"method\":" + Json.quote(method)
                + ",\"columns\":" + Json.quote(columns)
                + ",\"scope\":" + Json.quote(scope)
                + ",\"client\":" + Json.quote(name + "/" + subtask)
                + ",\"epoch\":" + epoch
                // Positive, and not the number of calls by hand.
                + ",\"operator\":" + (name.hashCode() & 0x7fff_ffff)
                + ",\"timeout_millis\":" + timeoutMillis + "}");
    }
}
