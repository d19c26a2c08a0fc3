package pelton.flink;

import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * The client of one subtask of a call. Rows are gathered while the one before is handed over, so that blocks form under load and a lone row
 * waits for nobody; one thread hands over, another takes what has ended.
 */
final class CallClient {
    /** A request's id. */
    record Id(long group, long sequence) {}

    /** Where what became of a request goes. */
    interface Receiver {
        void ended(long client, byte[] answer);

        void failed(Throwable why);
    }

    private static final long WAIT_MILLIS = 100;
    private static final int MOST_BYTES = 1 << 20;
    private static final long AGAIN_MILLIS = 50;

    private final byte[] settings;
    private final int columns;
    private final ConcurrentHashMap<Id, Receiver> pending = new ConcurrentHashMap<>();
    private final AtomicInteger inHand = new AtomicInteger();
    private final Object lock = new Object();
    private Values.Writer gathered = block();
    private int rows;
    private volatile boolean closed;
    private volatile RuntimeException failure;
    private final Thread sender;
    private volatile Thread taker;

    CallClient(byte[] settings, int columns, String name) {
        this.settings = settings;
        this.columns = columns;
        this.sender = thread(this::send, name + "-send");
        sender.start();
    }

    private Thread thread(Runnable work, String name) {
        Thread thread = new Thread(
                () -> {
                    try {
                        work.run();
                    } catch (RuntimeException e) {
                        fail(e);
                    }
                },
                name);
        thread.setDaemon(true);
        thread.setContextClassLoader(CallClient.class.getClassLoader());
        return thread;
    }

    private static Values.Writer block() {
        Values.Writer block = new Values.Writer();
        block.putInt(0);
        return block;
    }

    int inHand() {
        return inHand.get();
    }

    /** Takes a request; returns at once. */
    void submit(long group, long sequence, Object[] values, Receiver receiver) {
        if (failure != null) {
            throw failure;
        }
        pending.put(new Id(group, sequence), receiver);
        inHand.incrementAndGet();
        synchronized (lock) {
            int before = gathered.size();
            try {
                gathered.putLong(group);
                gathered.putLong(sequence);
                for (int i = 0; i < columns; i++) {
                    gathered.put(values[i]);
                }
            } catch (RuntimeException e) {
                gathered.back(before);
                throw e;
            }
            if (rows++ == 0) {
                lock.notify();
            }
        }
    }

    /** Waits until fewer than {@code limit} rows are in hand, but not longer than this. */
    void await(int limit, long millis) throws InterruptedException {
        long until = System.nanoTime() + millis * 1_000_000;
        synchronized (inHand) {
            for (long left = millis; inHand.get() >= limit && left > 0; left = (until - System.nanoTime()) / 1_000_000) {
                inHand.wait(left);
            }
        }
    }

    private void send() {
        try {
            long client = 0;
            while (client == 0) {
                if (closed) {
                    return;
                }
                client = Native.connect(settings);
                if (client == 0) {
                    Thread.sleep(AGAIN_MILLIS);
                }
            }
            long connected = client;
            taker = thread(() -> take(connected), Thread.currentThread().getName().replace("-send", "-take"));
            taker.start();
            Values.Writer spare = block();
            while (true) {
                Values.Writer full;
                synchronized (lock) {
                    while (rows == 0 && !closed) {
                        lock.wait();
                    }
                    if (closed) {
                        return;
                    }
                    full = gathered;
                    full.setInt(0, rows);
                    gathered = spare;
                    rows = 0;
                }
                Native.submit(client, full.array(), full.size());
                full.back(Integer.BYTES);
                spare = full;
            }
        } catch (InterruptedException e) {
            // Closed.
        }
    }

    private void take(long client) {
        try {
            while (!closed) {
                Values.Reader ended = new Values.Reader(Native.take(client, WAIT_MILLIS, MOST_BYTES));
                int count = 0;
                while (ended.hasMore()) {
                    Id id = new Id(ended.readLong(), ended.readLong());
                    byte[] answer = ended.readBytes();
                    Receiver receiver = pending.remove(id);
                    if (receiver != null) {
                        receiver.ended(client, answer);
                        count++;
                    }
                }
                if (count > 0) {
                    inHand.addAndGet(-count);
                    synchronized (inHand) {
                        inHand.notifyAll();
                    }
                }
            }
        } finally {
            Native.close(client);
        }
    }

    /** The client is of no use any more. */
    private void fail(RuntimeException why) {
        if (closed) {
            return;
        }
        failure = why;
        pending.values().forEach(receiver -> receiver.failed(why));
        synchronized (inHand) {
            inHand.notifyAll();
        }
    }

    void close() throws InterruptedException {
        closed = true;
        sender.interrupt();
        sender.join(10 * WAIT_MILLIS);
        Thread taking = taker;
        if (taking != null) {
            taking.join(10 * WAIT_MILLIS);
        }
    }
}
