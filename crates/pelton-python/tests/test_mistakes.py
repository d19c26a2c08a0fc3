"""What is said about mistakes that people make in Python."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import pelton as pn

NUMBERS = pa.table({"x": [1, 2, 3]})


def source() -> pn.Stream:
    return pn.from_arrow(NUMBERS)


async def later(row: dict[str, int]) -> dict[str, int]:
    return row


class Service(pn.Service):
    @pn.method(output={"y": int})
    def run(self, batch: pa.RecordBatch) -> Any:
        return {"y": batch["x"]}

    def unmarked(self, batch: pa.RecordBatch) -> Any: ...


class Bare(pn.Service):
    pass


class AsyncOpen(pn.Service):
    async def open(self, ctx: pn.Context) -> None: ...  # type: ignore[override]

    @pn.method(output={"y": int})
    def run(self, batch: pa.RecordBatch) -> Any: ...


class Locked(pn.Service):
    def __init__(self) -> None:
        self.lock = threading.Lock()

    @pn.method(output={"y": int})
    def run(self, batch: pa.RecordBatch) -> Any: ...


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: source().map(lambda row: (yield row)), "map: `lambda` yields, and gives a generator for each row; use flat_map for any number"),
        (lambda: source().filter(lambda row: (yield 1)), "filter: `lambda` yields"),
        (lambda: source().map(later), r"`later` is asynchronous.*make it a method of a service, with @pn.method\(concurrency=16\)"),
        (lambda: source().map_batches(later), "`later` is asynchronous"),
        (lambda: source().map(Service()), r"map takes a plain function, and <service service> is of a service: give it to .call"),
        (lambda: source().map(Service().run), r"<method run of <service service>> is of a service: give it to .call"),
        (lambda: source().map(3), "map takes a function, not 3"),
        (lambda: source().call(Service.run), r"not <method run>; that is the class's: make an object of it first, as in Embedder\(\).run"),
        (lambda: source().call(Service), r"that is the class: make an object of it first, and name the method, as in Service\(\).run"),
        (lambda: source().call(Service()), "not <service service>; name its method: run"),
        (lambda: source().call(Bare()), "it has no methods; mark them with @pn.method"),
        (lambda: source().call(Service().unmarked), "mark it with @pn.method"),
        (lambda: source().call(later), "for a plain function use map or map_batches"),
        (lambda: source().call(AsyncOpen().run).to_arrow(), "`open` is `async def`, and is called as a plain function; write `def open`"),
        (lambda: source().call(Locked().run).to_arrow(), "service `locked` cannot be pickled: TypeError: .*lock.*is made in `open`"),
        (lambda: source().call(Service(replicas=0).run).to_arrow(), "replicas=0; 1 to 1024"),
        (lambda: source().call(Service(replicas=(1, 4)).run).to_arrow(), "services do not grow and shrink by themselves yet; use one number"),
        (lambda: source().call(Service(replicas="two").run).to_arrow(), "replicas='two'; use a number"),  # type: ignore[arg-type]
        (lambda: pn.method(3), "@pn.method takes keyword arguments only"),  # type: ignore[type-var]
        (lambda: pn.method(output={"y": int})(Service), "@pn.method marks a function of a class"),
        (lambda: pn.method(lambda self: 1), "takes no rows; write `def <lambda>.self, batch.`"),
        (lambda: pn.service(output={"y": int})(Service), "@pn.service marks a function, not .*; a class is a service that subclasses pn.Service"),
        (lambda: pn.from_iter(5), "from_iter takes an iterable of rows, or a function that makes one, not 5"),  # type: ignore[arg-type]
        (lambda: pn.from_iter([1, 2]).to_arrow(), "from_iter was given an int; each row must be a dict"),  # type: ignore[list-item]
        (lambda: pn.from_arrow([1, 2]), "from_arrow takes a table of Arrow's, or what can be made one, not a list"),  # type: ignore[arg-type]
        (lambda: source().filter((pn.col("x") > 1) and (pn.col("x") < 3)), "use & | ~ in place of `and`"),
        (lambda: source().call(Service().run, timeout="soon"), "timeout: 'soon' is no duration"),
        (lambda: source().group_by("x").agg(n=("x", "median")), "where how is one of all, any, count"),
    ],
)
def test_mistakes_are_told_before_anything_starts(made: Callable[[], Any], message: str) -> None:
    with pytest.raises(pn.InvalidError, match=message):
        made()


class Odd(pn.Service):
    """Gives what no method must give."""

    @pn.method(output={"y": int})
    def lazy(self, batch: pa.RecordBatch) -> Any:
        return (x for x in batch["x"].to_pylist())

    @pn.method(output={"y": int})
    def function(self, batch: pa.RecordBatch) -> Any:
        return lambda: batch

    @pn.method(output={"y": int})
    def too_many(self, batch: pa.RecordBatch) -> Any:
        return {"y": [1] * 10}

    @pn.method(output={"y": int})
    def uneven(self, batch: pa.RecordBatch) -> Any:
        return {"y": [1] * (batch.num_rows - 1)}

    @pn.method(output={"y": int})
    def streams_numbers(self, batch: pa.RecordBatch) -> Iterator[Any]:
        yield 5

    @pn.method(output={"y": int}, concurrency=2)
    async def raises_later(self, batch: pa.RecordBatch) -> Any:
        raise KeyError("k")

    @pn.method(output={"y": int})
    def leaves(self, batch: pa.RecordBatch) -> Any:
        sys.exit("no more")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("lazy", r"`lazy` gave a generator; it must return rows with the columns \(y: int64\).*a method that streams has `yield` in its own body"),
        ("function", "`function` gave a function; it must return rows"),
        ("too_many", "gave 10 rows for 3 requests; it must give one for each, in the same order"),
        ("uneven", "gave 2 rows for 3 requests"),
        ("streams_numbers", "`streams_numbers` gave an int; it must return rows"),
        ("raises_later", r"KeyError: 'k'(.|\n)*in raises_later"),
        ("leaves", r"SystemExit: no more(.|\n)*in leaves"),
    ],
)
def test_odd_answers_are_told_with_the_method(method: str, message: str) -> None:
    with pytest.raises(pn.UserCodeError, match=message):
        source().call(getattr(Odd(), method)).to_arrow()


def test_functions_may_yield_batches() -> None:
    def twice(batch: pa.RecordBatch) -> Iterator[Any]:
        yield {"y": batch["x"]}
        yield {"y": [10 * x for x in batch["x"].to_pylist()]}

    def never(batch: pa.RecordBatch) -> Iterator[Any]:
        yield from ()

    assert source().map_batches(twice).to_arrow()["y"].to_pylist() == [1, 2, 3, 10, 20, 30]
    assert source().map_batches(never, output={"y": int}).count() == 0
    with pytest.raises(pn.InvalidError, match="`never` gave nothing for the first rows, so the columns that it gives are not known; declare `output=`"):
        source().map_batches(never).to_arrow()


def test_a_class_that_is_gone_is_named_with_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "renamed_tomorrow.py"
    module.write_text("import pelton as pn\nclass Old(pn.Service):\n    @pn.method(output={'y': int})\n    def run(self, batch):\n        return batch\n")
    import renamed_tomorrow  # type: ignore[import-not-found]

    called = source().call(renamed_tomorrow.Old().run)
    module.write_text("class New: ...\n")
    for cached in (tmp_path / "__pycache__").glob("*"):
        cached.unlink()
    message = rf"the service's class or function cannot be found in {sys.executable} \(Python 3\..*'Old' on <module 'renamed_tomorrow'"
    with pytest.raises(pn.InvalidError, match=message):
        called.to_arrow()


def test_a_process_that_dies_as_it_opens_shows_the_end_of_its_log() -> None:
    class Dies(pn.Service):
        def open(self, ctx: pn.Context) -> None:
            print("as far as it got")
            os._exit(4)

        @pn.method(output={"y": int})
        def run(self, batch: pa.RecordBatch) -> Any: ...

    with pytest.raises(pn.PeltonError, match="service `dies` did not start in 2 attempts: exit status: 4") as told:
        source().call(Dies(settings={"retry": {"starts": 2, "backoff": "1ms"}}).run).to_arrow()
    [note] = told.value.__notes__
    assert note.startswith("the end of dies-0.log (PELTON_LOGS=FOLDER in the environment keeps it):") and "as far as it got" in note
