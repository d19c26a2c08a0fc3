"""The user's code in an instance. The engine's worker thread calls in here, one batch after another."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import functools
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from ._batches import batch_of, given_as
from ._errors import InvalidError, UserCodeError
from ._pelton import Call, Context, Parts, Reply
from ._service import FunctionService, Method, Service

#: How soon an asynchronous method that nobody waits for is cancelled.
_LOOK_EVERY = 0.1


def open(pickled: str, path: Sequence[str], methods: Sequence[tuple[str, pa.Schema]], context: Context) -> Worker:
    """Unpickles the service and opens it. ``methods`` are those of the job, in its order, with the columns that they give."""
    sys.path.extend(p for p in path if p not in sys.path)
    service = _unpickled(pickled)
    service.open(context)
    return Worker(service, methods)


def _unpickled(pickled: str) -> Service:
    environment = f"{sys.executable} (Python {sys.version_info.major}.{sys.version_info.minor})"
    try:
        service: Service = pickle.loads(base64.b64decode(pickled))
        return service
    except ModuleNotFoundError as e:
        raise InvalidError(
            f"module `{e.name}` is not there in the service's environment, {environment}: install it there, or name another environment "
            "with `python=`"
        ) from None
    except AttributeError as e:
        raise InvalidError(f"the service's class or function cannot be found in {environment}: {e}") from None
    except Exception as e:
        raise InvalidError(
            f"the service cannot be unpickled in {environment}: {type(e).__name__}: {e}; a service that is defined in a script or notebook "
            "needs the same Python version there"
        ) from None


class Worker:
    """An opened service."""

    def __init__(self, service: Service, methods: Sequence[tuple[str, pa.Schema]]) -> None:
        self._service = service
        found = service._methods()
        self._methods = [found[name] for name, _ in methods]
        self._outputs = [output for _, output in methods]
        self._functions = [self._function(method) for method in self._methods]
        self._whats = [f"method `{method.name}`" for method in self._methods]
        self._loop: _Loop | None = None

    def _function(self, method: Method[Any]) -> Callable[..., Any]:
        function: Callable[..., Any] = method.function
        return function if isinstance(self._service, FunctionService) else functools.partial(function, self._service)

    def _arguments(self, method: Method[Any], batch: pa.RecordBatch, call: Call) -> tuple[Any, ...]:
        given = given_as(batch, method.format)
        return (given, call) if method.wants_call else (given,)

    def run(self, index: int, batch: pa.RecordBatch, call: Call) -> pa.RecordBatch:
        method = self._methods[index]
        result = self._functions[index](*self._arguments(method, batch, call))
        return self._answer(index, result, call)

    def _answer(self, index: int, result: Any, call: Call) -> pa.RecordBatch:
        # Whether there is a row for each request, the engine checks: that is no mistake of single rows.
        return batch_of(_without_failed(result, call), self._outputs[index], self._whats[index])

    def stream(self, index: int, batch: pa.RecordBatch, call: Call) -> Iterator[pa.RecordBatch]:
        method = self._methods[index]
        what = f"method `{method.name}`"
        parts = self._function(method)(*self._arguments(method, batch, call))
        try:
            for part in parts:
                yield batch_of(part, self._outputs[index], what)
        finally:
            parts.close()

    def submit(self, index: int, batch: pa.RecordBatch, call: Call, reply: Reply) -> None:
        method = self._methods[index]

        async def answer() -> None:
            result = await self._function(method)(*self._arguments(method, batch, call))
            reply.done(self._answer(index, result, call))

        self._begin(answer(), call, reply)

    def flow(self, index: int, batch: pa.RecordBatch, call: Call, parts: Parts, reply: Reply) -> None:
        method = self._methods[index]
        what = f"method `{method.name}`"

        async def answer() -> None:
            given = self._function(method)(*self._arguments(method, batch, call))
            try:
                async for part in given:
                    rows = batch_of(part, self._outputs[index], what)
                    # Waits on a thread while the caller takes nothing; the others go on.
                    await asyncio.get_running_loop().run_in_executor(self._started().waiting, parts.put, rows)
            finally:
                await given.aclose()
            reply.done(pa.RecordBatch.from_pylist([], schema=self._outputs[index]))

        self._begin(answer(), call, reply)

    def _started(self) -> _Loop:
        if self._loop is None:
            self._loop = _Loop(sum(m.concurrency or 0 for m in self._methods))
        return self._loop

    def _begin(self, answer: Any, call: Call, reply: Reply) -> None:
        asyncio.run_coroutine_threadsafe(_watched(answer, call, reply), self._started().loop)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.end()
        self._service.close()


def _without_failed(result: Any, call: Call) -> Any:
    """A list may have exceptions in the place of rows that failed: they are told to the engine, and another row stands in for them."""
    if not isinstance(result, list) or not any(isinstance(row, Exception) for row in result):
        return result
    good = next((row for row in result if not isinstance(row, Exception)), None)
    if good is None:
        # A batch of nothing but bad rows, which the engine runs again in halves, down to single ones.
        raise next(row for row in result if isinstance(row, Exception))
    for at, row in enumerate(result):
        if isinstance(row, Exception):
            call.fail(at, row)
    return [good if isinstance(row, Exception) else row for row in result]


class _Loop:
    """An event loop on a thread of its own."""

    def __init__(self, bound: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.waiting = ThreadPoolExecutor(max(bound, 1), thread_name_prefix="pelton-parts")
        self._thread = threading.Thread(target=self.loop.run_forever, name="pelton-async", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Ends it once what runs in it has ended: the service is idle, but answers go out before their tasks are over."""
        rest = asyncio.run_coroutine_threadsafe(_others(), self.loop)
        with contextlib.suppress(concurrent.futures.TimeoutError):
            rest.result(timeout=1)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=1)
        self.waiting.shutdown(wait=False)
        if not self._thread.is_alive():
            self.loop.close()


async def _others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others)


async def _watched(answer: Any, call: Call, reply: Reply) -> None:
    """Runs a method to its end, or until nobody waits for it."""
    task = asyncio.ensure_future(answer)
    while not task.done():
        await asyncio.wait({task}, timeout=_LOOK_EVERY)
        if call.is_cancelled():
            task.cancel()
    try:
        task.result()
    except asyncio.CancelledError:
        reply.failed(UserCodeError("the call was cancelled"))
    except Exception as e:
        reply.failed(e)
