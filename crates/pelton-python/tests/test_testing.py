"""Services in tests of their own."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import pelton as pn
import pelton.testing


class Service(pn.Service):
    def __init__(self, factor: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.factor = factor

    def open(self, ctx: pn.Context) -> None:
        ctx.count("opened")
        ctx.report_memory(1, 2)

    @pn.method(output={"y": int})
    def times(self, batch: pa.RecordBatch) -> Any:
        return {"y": [self.factor * x for x in batch["x"].to_pylist()]}

    @pn.method(output={"y": int}, concurrency=2)
    async def later(self, batch: pa.RecordBatch) -> Any:
        await asyncio.sleep(0)
        return self.times(batch)

    @pn.method(output={"y": int})
    def count(self, batch: pa.RecordBatch) -> Any:
        for y in range(batch["x"][0].as_py()):
            yield {"y": [y]}

    @pn.method(output={"y": int}, concurrency=2)
    async def count_later(self, batch: pa.RecordBatch) -> Any:
        for y in range(batch["x"][0].as_py()):
            yield {"y": [y]}

    @pn.method(output={"y": int}, format="rows")
    def odd(self, rows: list[dict[str, int]]) -> Any:
        return [ValueError("odd") if row["x"] % 2 else {"y": row["x"]} for row in rows]

    @pn.method(output={"y": int})
    def one(self, batch: pa.RecordBatch) -> Any:
        return {"y": [1]}


ROWS = [{"x": 2}, {"x": 3}]


@pytest.mark.parametrize(
    ("method", "expected"), [("times", [20, 30]), ("later", [20, 30]), ("count", [0, 1, 0, 1, 2]), ("count_later", [0, 1, 0, 1, 2])]
)
def test_each_kind_of_method_gives_what_it_gives_in_a_pipeline(method: str, expected: list[int]) -> None:
    service = Service(10)
    assert pelton.testing.call(getattr(service, method), ROWS)["y"].to_pylist() == expected
    assert pn.from_pylist(ROWS).call(getattr(service, method)).to_arrow()["y"].to_pylist() == expected


def test_mistakes_are_the_same() -> None:
    context = pelton.testing.Context()
    with pelton.testing.opened(Service(1), context) as service:
        assert context.counted == {"opened": 1} and context.memory == (1, 2)
        with pytest.raises(pn.UserCodeError, match="gave 1 rows for 2 requests"):
            service.call("one", ROWS)
        with pytest.raises(ValueError, match="odd"):
            service.call("odd", ROWS)
        call = pelton.testing.Call()
        service.call("odd", ROWS, call)
        assert list(call.failed) == [1]
    with pytest.raises(TypeError, match="pickle"):
        unsent = Service(1)
        unsent.lock = threading.Lock()  # type: ignore[attr-defined]
        pelton.testing.call(unsent.times, ROWS)


class Model(pn.Service):
    @pn.method(max_rows=8, input={"x": int}, output={"label": str, "vector": pa.list_(pa.float32(), 4)})
    def run(self, batch: pa.RecordBatch) -> Any:
        raise AssertionError("a script stands in for it")

    @pn.method(input={"x": int}, output={"part": int})
    def stream(self, batch: pa.RecordBatch) -> Any:
        yield from ()


def test_a_script_stands_in_for_a_service() -> None:
    table = pa.table({"x": list(range(300))})
    calm = pelton.testing.scripted(Model(replicas=2), seed=1)
    expected = pn.from_arrow(table).call(calm.run).to_arrow()
    assert expected["x"].to_pylist() == list(range(300)) and len(set(expected["label"].to_pylist())) == 300
    # The same answers, whatever happens on the way.
    rough = pelton.testing.scripted(Model(replicas=2, settings={"retry": {"attempts": 20, "backoff": "1ms"}}), failure_rate=0.1, crash_after=9)
    assert pn.from_arrow(table).call(rough.run).to_arrow().equals(expected)
    assert pn.from_arrow(table).call(pelton.testing.scripted(Model(), parts=3).stream).count() == 900
    poisoned = pn.from_arrow(table).call(pelton.testing.scripted(Model(), poison_rate=0.1).run, on_error="error-output")
    assert 0 < poisoned.errors().count() < 100
    with pytest.raises(pn.PeltonError, match="no model here"):
        pn.from_arrow(table).call(pelton.testing.scripted(Model(), open_error="no model here").run).to_arrow()
    with pytest.raises(pn.PeltonError, match="unknown field `speed`"):
        pn.from_arrow(table).call(pelton.testing.scripted(Model(), speed=3).run).to_arrow()


def test_instances_are_killed_while_a_job_runs(tmp_path: Path) -> None:
    table = pa.table({"x": list(range(3000))})
    slow = pelton.testing.scripted(Model(replicas=2, settings={"retry": {"attempts": 20, "backoff": "1ms"}}), latency="20ms")
    with pelton.testing.kills(most=4, every=0.3, seed=1) as kills:
        summary = pn.from_arrow(table).call(slow.run).write_json(tmp_path / "out", checkpoint_interval=0.2)
    assert len(kills.pids) > 0 and summary.rows == 3000
    rows = [json.loads(line)["x"] for part in (tmp_path / "out").glob("part-*") for line in part.read_text().splitlines()]
    assert sorted(rows) == list(range(3000))
