"""Services in tests: run here without processes, played by a script, or killed while a job runs."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cloudpickle
import pyarrow as pa

from ._errors import PeltonError, UserCodeError
from ._run import Execution
from ._service import BoundMethod, FunctionService, Service
from ._worker import Worker

S = TypeVar("S", bound=Service)


@dataclass
class Context:
    """What ``open`` is handed, as ``pn.Context``."""

    service: str = "test"
    instance: int = 0
    cpus: float = 1.0
    device: str = "cpu"
    counted: dict[str, int] = field(default_factory=dict)
    #: What was reported last: used, total.
    memory: tuple[float, float] | None = None

    def count(self, what: str, n: int = 1) -> None:
        self.counted[what] = self.counted.get(what, 0) + n

    def report_memory(self, used: float, total: float) -> None:
        self.memory = used, total


class Call:
    """What a method with a second parameter is handed, as ``pn.Call``."""

    def __init__(self) -> None:
        #: The rows that failed, and why.
        self.failed: dict[int, str | Exception] = {}
        self.cancelled = False

    def is_cancelled(self) -> bool:
        return self.cancelled

    def fail(self, row: int, error: str | Exception) -> None:
        self.failed[row] = error


class _Answer:
    """An asynchronous method's answer."""

    def __init__(self) -> None:
        self._there = threading.Event()
        self._rows: pa.RecordBatch | None = None
        self._error: BaseException | None = None
        self.parts: list[pa.RecordBatch] = []

    def put(self, rows: pa.RecordBatch) -> None:
        self.parts.append(rows)

    def done(self, rows: pa.RecordBatch) -> None:
        self._rows = rows
        self._there.set()

    def failed(self, exception: BaseException) -> None:
        self._error = exception
        self._there.set()

    def wait(self) -> pa.RecordBatch:
        self._there.wait()
        if self._error is not None:
            raise self._error
        assert self._rows is not None
        return self._rows


class Opened:
    """A service that was opened here. Made by :func:`opened`."""

    def __init__(self, worker: Worker, names: list[str], outputs: dict[str, pa.Schema]) -> None:
        self._worker = worker
        self._names = names
        self._outputs = outputs

    def call(self, method: str, rows: pa.Table | pa.RecordBatch | list[dict[str, Any]], call: Call | None = None) -> pa.Table:
        """Calls a method with these rows, as one batch, and gives what an instance would give for them.

        A streaming method gets the rows one by one; what it yields comes one after the other. Rows that the method marks as failed are in
        ``call.failed``; without ``call``, the first of them is raised.
        """
        index = self._names.index(method)
        kind = self._worker._methods[index]
        table = pa.Table.from_pylist(rows) if isinstance(rows, list) else rows
        table = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
        # As it comes from the engine: in one piece.
        batch = pa.RecordBatch.from_arrays([c.combine_chunks() for c in table.columns], schema=table.schema)
        told = call if call is not None else Call()
        if kind.streams:
            parts = [part for row in range(batch.num_rows) for part in self._stream(index, batch.slice(row, 1), told)]
        elif kind.concurrency is not None:
            answer = _Answer()
            self._worker.submit(index, batch, told, answer)  # type: ignore[arg-type]
            parts = [answer.wait()]
        else:
            parts = [self._worker.run(index, batch, told)]  # type: ignore[arg-type]
        given = pa.Table.from_batches(parts, self._outputs[method])
        if not kind.streams and given.num_rows != batch.num_rows:
            raise UserCodeError(
                f"method `{method}` gave {given.num_rows} rows for {batch.num_rows} requests; it must give one for each, in the same order"
            )
        if call is None and told.failed:
            first = next(iter(told.failed.values()))
            raise first if isinstance(first, Exception) else UserCodeError(first)
        return given

    def _stream(self, index: int, row: pa.RecordBatch, call: Call) -> list[pa.RecordBatch]:
        if self._worker._methods[index].concurrency is None:
            return list(self._worker.stream(index, row, call))  # type: ignore[arg-type]
        answer = _Answer()
        self._worker.flow(index, row, call, answer, answer)  # type: ignore[arg-type]
        answer.wait()
        return answer.parts


@contextmanager
def opened(service: Service, context: Context | None = None) -> Iterator[Opened]:
    """Opens a copy of a service here, pickled and unpickled as it would be on its way to an instance, and closes it at the end::

        with pelton.testing.opened(Embedder("small")) as embedder:
            assert embedder.call("embed", [{"text": "a"}]).num_rows == 1
    """
    for name, method in service._methods().items():
        if method.output is None:
            raise PeltonError(f"method `{name}` does not say which columns it gives; declare them with `output=`")
    outputs = {name: method.output for name, method in service._methods().items() if method.output is not None}
    copy: Service = pickle.loads(cloudpickle.dumps(service))
    copy.open(context or Context(service=service._service_name(), device=service._settings.device))  # type: ignore[arg-type]
    worker = Worker(copy, list(outputs.items()))
    try:
        yield Opened(worker, list(outputs), outputs)
    finally:
        worker.close()


def scripted(service: S, **script: Any) -> S:
    """The same service, its methods answered by a script in place of the model: in processes of its own, with its latencies and failures.

    Answers are made of the row alone, so that a test can tell whether each row got its own: a column of the input comes back under its name,
    others are made of a hash of the row (texts, bytes, integers, ``float32``, and fixed-size lists of them). What a script may say, with
    latencies as ``"20ms"``: ``open``, ``open_error``, ``latency``, ``per_row``, ``jitter``, ``failure_rate`` (batches that may pass another
    time), ``poison_rate`` (rows that always fail), ``crash_after``, ``crash_on_poison``, ``hang_after``, ``slow_after``, ``memory_rows``,
    ``parts``, ``seed``, and the others of ``crates/pelton-scripted``::

        embedder = pelton.testing.scripted(Embedder("small"), latency="2ms", failure_rate=0.1, crash_after=20)
        assert docs.call(embedder.embed).count() == 1000
    """
    other = service.options()
    other._script = script
    return other


class Kills:
    """What :func:`kills` has done so far."""

    def __init__(self) -> None:
        #: The processes that were killed.
        self.pids: list[int] = []


@contextmanager
def kills(most: int = 5, every: float = 0.2, seed: int | None = None) -> Iterator[Kills]:
    """While its block runs, kills an instance of this process's jobs now and then, chosen at random, as a machine may at any moment::

        with pelton.testing.kills() as kills:
            docs.call(embedder.embed).write_parquet(folder)
        assert kills.pids and pq.read_table(folder).num_rows == 1000

    :param most: so many at most.
    :param every: seconds between two.
    :param seed: of the choice.
    """
    done, over, choice = Kills(), threading.Event(), random.Random(seed)

    def kill() -> None:
        while len(done.pids) < most and not over.wait(every):
            told = [json.loads(execution.running.progress() or "{}") for execution in list(Execution._all)]
            pids = {pid for job in told for service in job.get("services", ()) for pid in service["pids"]} - set(done.pids)
            if pids:
                pid = choice.choice(sorted(pids))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    done.pids.append(pid)

    thread = threading.Thread(target=kill, name="pelton-kills", daemon=True)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


def call(
    method: BoundMethod | FunctionService, rows: pa.Table | pa.RecordBatch | list[dict[str, Any]], context: Context | None = None
) -> pa.Table:
    """Opens a service here, calls one of its methods with these rows, and closes it: ``call(Embedder().embed, [{"text": "a"}])``."""
    if isinstance(method, FunctionService):
        method = BoundMethod(method, method._method)
    with opened(method.service, context) as service:
        return service.call(method.method.name, rows)
