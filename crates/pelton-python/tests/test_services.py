"""Services in Python: what a method gets and gives, and what becomes of mistakes and crashes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import pelton as pn

NUMBERS = pa.table({"x": list(range(100))})


class Shout(pn.Service):
    def __init__(self, suffix: str = "!", **settings: Any) -> None:
        super().__init__(**settings)
        self.suffix = suffix

    def open(self, ctx: pn.Context) -> None:
        self.told = f"{ctx.service}/{ctx.device}"
        self.pid = os.getpid()

    @pn.method(output={"loud": str, "pid": int, "told": str})
    def shout(self, batch: pa.RecordBatch) -> Any:
        n = batch.num_rows
        # So that the other instance is there in time, too.
        time.sleep(0.02)
        return {
            "loud": [text.upper() + self.suffix for text in batch["text"].to_pylist()],
            "pid": [self.pid] * n,
            "told": [self.told] * n,
        }

    @pn.method(output={"quiet": str})
    def whisper(self, batch: pa.RecordBatch) -> Any:
        return {"quiet": [text.lower() for text in batch["text"].to_pylist()]}


def test_rows_pass_through_a_class_in_processes_of_its_own() -> None:
    texts = pa.table({"text": [f"a{i}" for i in range(2000)]})
    out = pn.from_arrow(texts).call(Shout("?", replicas=2, device="tpu").shout).to_arrow()
    assert out["loud"].to_pylist() == [f"A{i}?" for i in range(2000)]
    pids = set(out["pid"].to_pylist())
    assert len(pids) == 2 and os.getpid() not in pids
    assert set(out["told"].to_pylist()) == {"shout/tpu"}


def test_a_service_with_several_methods_is_one_service() -> None:
    shout = Shout()
    out = pn.from_pylist([{"text": "Ab"}]).call(shout.shout).call(shout.whisper, columns=["text"])
    assert out.select("loud", "quiet").to_pylist() == [{"loud": "AB!", "quiet": "ab"}]
    assert out.explain().count("shout: ") == 1


def test_a_method_runs_here_when_it_is_called_like_one() -> None:
    assert Shout().whisper(pa.RecordBatch.from_pydict({"text": ["Ab"]})) == {"quiet": ["ab"]}


def test_a_plain_function_is_a_service() -> None:
    @pn.service(output={"y": int}, replicas=2)
    def double(batch: pa.RecordBatch) -> Any:
        return pc.multiply(batch["x"], 2)

    assert pn.from_arrow(NUMBERS).call(double).to_arrow()["y"].to_pylist() == [2 * i for i in range(100)]


@pytest.mark.parametrize("format", ["arrow", "numpy", "pandas", "rows"])
def test_methods_get_the_format_that_they_ask_for(format: pn.Format) -> None:
    class Typed(pn.Service):
        @pn.method(format=format, output={"what": str, "vector": pa.list_(pa.float32(), 2)})
        def tell(self, batch: Any) -> Any:
            n = batch.num_rows if format == "arrow" else len(batch["v"]) if isinstance(batch, dict) else len(batch)
            first = batch if not isinstance(batch, dict) else batch["v"]
            return {"what": [type(first).__name__] * n, "vector": np.ones((n, 2))}

    table = pa.table({"v": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float64(), 2))})
    out = pn.from_arrow(table).call(Typed().tell).to_arrow()
    expected = {"arrow": "RecordBatch", "numpy": "ndarray", "pandas": "DataFrame", "rows": "list"}
    assert set(out["what"].to_pylist()) == {expected[format]}
    assert out["vector"].to_pylist() == [[1.0, 1.0]] * 3


def test_numbers_reach_numpy_without_a_copy_and_tensors_with_their_shape() -> None:
    class Shapes(pn.Service):
        @pn.method(output={"writable": bool, "shape": str})
        def tell(self, batch: dict[str, np.ndarray]) -> Any:
            n = len(batch["x"])
            return {"writable": [batch["x"].flags.writeable] * n, "shape": [str(batch["image"].shape[1:])] * n}

    image = pa.list_(pa.list_(pa.uint8(), 2), 3)
    table = pa.table({"x": pa.array([1.0, 2.0]), "image": pa.array([[[1, 2]] * 3] * 2, image)})
    [row, _] = pn.from_arrow(table).call(Shapes().tell).select("writable", "shape").to_pylist()
    # What is shared with the engine cannot be written to.
    assert row == {"writable": False, "shape": "(3, 2)"}


def test_asynchronous_methods_run_side_by_side_up_to_their_bound() -> None:
    class Waits(pn.Service):
        def open(self, ctx: pn.Context) -> None:
            self.now, self.most = 0, 0

        @pn.method(concurrency=4, max_rows=1, output={"most": int})
        async def wait(self, batch: pa.RecordBatch) -> Any:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.05)
            self.now -= 1
            return {"most": [self.most]}

    out = pn.from_arrow(NUMBERS.slice(0, 20)).call(Waits().wait).to_arrow()
    assert max(out["most"].to_pylist()) == 4


def test_generators_stream_any_number_of_rows() -> None:
    class Counts(pn.Service):
        @pn.method(output={"n": int})
        def count(self, batch: pa.RecordBatch) -> Any:
            for n in range(batch["x"][0].as_py()):
                yield {"n": [n]}

        @pn.method(concurrency=3, output={"n": int})
        async def count_async(self, batch: pa.RecordBatch) -> Any:
            for n in range(batch["x"][0].as_py()):
                await asyncio.sleep(0)
                yield {"n": [n]}

    source = pn.from_pylist([{"x": 3}, {"x": 0}, {"x": 2}])
    expected = [{"x": 3, "n": 0}, {"x": 3, "n": 1}, {"x": 3, "n": 2}, {"x": 2, "n": 0}, {"x": 2, "n": 1}]
    counts = Counts()
    assert source.call(counts.count).to_pylist() == expected
    assert source.call(counts.count_async).to_pylist() == expected


class Wrong(pn.Service):
    @pn.method(output={"y": int})
    def raises(self, batch: pa.RecordBatch) -> Any:
        if 7 in batch["x"].to_pylist():
            raise ValueError("seven is bad")
        return {"y": batch["x"]}

    @pn.method(output={"y": int})
    def too_few(self, batch: pa.RecordBatch) -> Any:
        return {"y": [1]}

    @pn.method(output={"y": int})
    def other_columns(self, batch: pa.RecordBatch) -> Any:
        return {"z": batch["x"]}

    @pn.method(output={"y": int})
    def other_type(self, batch: pa.RecordBatch) -> Any:
        return {"y": ["text"] * batch.num_rows}

    @pn.method(output={"y": int})
    def nothing(self, batch: pa.RecordBatch) -> Any:
        pass

    @pn.method(output={"y": int}, format="rows")
    def marks(self, rows: list[dict[str, int]]) -> Any:
        return [ArithmeticError("odd") if row["x"] % 2 else {"y": row["x"]} for row in rows]

    @pn.method
    def undeclared(self, batch: pa.RecordBatch) -> Any:
        return {"y": batch["x"]}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("raises", r'request \S+, row {"x":7}: ValueError: seven is bad\nTraceback(.|\n)*in raises'),
        ("too_few", r"gave 1 rows for \d+ requests; it must give one for each"),
        ("other_columns", r"gave the columns \(z\), and its declared output is \(y: int64\)"),
        ("other_type", r"column `y` cannot be int64: Could not convert 'text'"),
        ("nothing", r"gave None; it must return rows with the columns \(y: int64\)"),
        ("undeclared", r"does not say which columns it gives; declare them, as in @pn.method\(output="),
    ],
)
def test_mistakes_are_told_in_words_that_help(method: str, message: str) -> None:
    with pytest.raises((pn.UserCodeError, pn.InvalidError), match=message):
        pn.from_arrow(NUMBERS).call(getattr(Wrong(), method)).to_arrow()


def test_a_row_that_fails_goes_where_the_policy_says() -> None:
    source, wrong = pn.from_arrow(NUMBERS), Wrong()
    called = source.call(wrong.raises, on_error="error-output")
    assert called.to_arrow()["x"].to_pylist() == [x for x in range(100) if x != 7]
    [error] = called.errors().to_pylist()
    assert error["kind"] == "user" and error["row"] == '{"x":7}' and error["request"]
    assert "Traceback" in error["message"] and "in raises" in error["message"]
    given = source.call(wrong.raises, on_error={"y": -1}).to_arrow()["y"].to_pylist()
    assert given == [-1 if x == 7 else x for x in range(100)]


def test_a_method_marks_single_rows_as_failed_and_the_batch_runs_once() -> None:
    class Once(pn.Service):
        def open(self, ctx: pn.Context) -> None:
            self.runs = 0

        @pn.method(output={"runs": int}, format="rows")
        def marks(self, rows: list[dict[str, int]], call: pn.Call) -> Any:
            self.runs += len(rows)
            for at, row in enumerate(rows):
                if row["x"] == 3:
                    call.fail(at, "three")
            return [ArithmeticError("odd") if row["x"] == 5 else {"runs": self.runs} for row in rows]

    called = pn.from_arrow(NUMBERS).call(Once().marks, on_error="error-output")
    rows = called.to_arrow()
    assert rows["x"].to_pylist() == [x for x in range(100) if x not in (3, 5)]
    # Nothing ran twice to find the bad rows.
    assert max(rows["runs"].to_pylist()) == 100
    messages = [e["message"].splitlines()[0] for e in called.errors().to_pylist()]
    assert messages == ["three", "ArithmeticError: odd"]
    marked = pn.from_arrow(NUMBERS).call(Wrong().marks, on_error={"y": -1}).to_arrow()["y"].to_pylist()
    assert marked == [-1 if x % 2 else x for x in range(100)]


@pytest.mark.parametrize("how", ["exit", "segfault"])
def test_a_crash_of_the_interpreter_restarts_that_instance_only(tmp_path: Path, how: str) -> None:
    class Crashes(pn.Service):
        def __init__(self, folder: str, **settings: Any) -> None:
            super().__init__(**settings)
            self.folder = Path(folder)

        def open(self, ctx: pn.Context) -> None:
            self.where = f"{ctx.instance}:{os.getpid()}"

        @pn.method(max_rows=8, output={"where": str})
        def run(self, batch: pa.RecordBatch) -> Any:
            try:
                (self.folder / "crashed").touch(exist_ok=False)
            except FileExistsError:
                time.sleep(0.01)
                return {"where": [self.where] * batch.num_rows}
            if how == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGSEGV)

    table = pa.table({"x": list(range(2000))})
    out = pn.from_arrow(table).call(Crashes(str(tmp_path), replicas=2).run).to_arrow()
    assert out["x"].to_pylist() == list(range(2000))
    pids: dict[str, set[str]] = {}
    for where in out["where"].to_pylist():
        number, _, pid = where.partition(":")
        pids.setdefault(number, set()).add(pid)
    # What crashed had given nothing, and the other never changed.
    assert all(len(of) == 1 for of in pids.values())


def test_a_method_that_holds_the_lock_of_the_interpreter_is_no_dead_instance() -> None:
    class Holds(pn.Service):
        def open(self, ctx: pn.Context) -> None:
            import ctypes

            # Called through PyDLL, C code keeps the lock.
            self.sleep = ctypes.PyDLL(None).sleep

        @pn.method(output={"pid": int})
        def hold(self, batch: pa.RecordBatch) -> Any:
            self.sleep(18)
            return {"pid": [os.getpid()] * batch.num_rows}

    # Control gives an instance up that says nothing for 15 seconds.
    [row] = pn.from_pylist([{"x": 1}]).call(Holds().hold).to_pylist()
    assert row["pid"] != os.getpid()


def test_a_class_of_any_kind_has_settings() -> None:
    @dataclass
    class Adds(pn.Service):
        n: int

        def open(self, ctx: pn.Context) -> None:
            self.where = ctx.service

        @pn.method(output={"y": int, "where": str})
        def run(self, batch: pa.RecordBatch) -> Any:
            return {"y": pc.add(batch["x"], self.n), "where": [self.where] * batch.num_rows}

    three = Adds(3).options(name="three", replicas=2)
    rows = pn.from_arrow(NUMBERS).call(three.run).to_arrow()
    assert rows["y"].to_pylist() == [x + 3 for x in range(100)] and set(rows["where"].to_pylist()) == {"three"}
    assert "instances: 2," in pn.from_arrow(NUMBERS).call(three.run).explain()
    assert "instances: 1," in pn.from_arrow(NUMBERS).call(Adds(3).run).explain()


def test_what_hangs_is_ended_and_leaves_its_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELTON_LOGS", str(tmp_path / "logs"))

    class Hangs(pn.Service):
        def __init__(self, mark: str) -> None:
            super().__init__(settings={"stall": "2s"})
            self.mark = Path(mark)

        @pn.method(output={"y": int})
        def run(self, batch: pa.RecordBatch) -> Any:
            try:
                self.mark.touch(exist_ok=False)
            except FileExistsError:
                return {"y": batch["x"]}
            self.wait_for_ever()

        def wait_for_ever(self) -> None:
            threading.Event().wait()

    assert pn.from_arrow(NUMBERS).call(Hangs(str(tmp_path / "mark")).run).count() == 100
    [log] = (tmp_path / "logs").glob("*/logs/hangs-0.log")
    assert "has given nothing for" in log.read_text() and "in wait_for_ever" in log.read_text()


def test_an_open_that_fails_is_told_with_its_traceback() -> None:
    class NoModel(pn.Service):
        def open(self, ctx: pn.Context) -> None:
            raise FileNotFoundError("no model here")

        @pn.method(output={"y": int})
        def run(self, batch: pa.RecordBatch) -> Any:
            return {"y": batch["x"]}

    with pytest.raises(pn.PeltonError, match=r"service `no-model` cannot open: FileNotFoundError: no model here(.|\n)*in open"):
        pn.from_arrow(NUMBERS).call(NoModel().run).to_arrow()


def test_an_open_that_takes_long_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import time
import pelton as pn

class Slow(pn.Service):
    def open(self, ctx):
        time.sleep(12)

    @pn.method(output={"y": int})
    def run(self, batch):
        return {"y": batch["x"]}

print(pn.from_pylist([{"x": 4}]).call(Slow().run).to_pylist())
"""
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert ran.stdout == "[{'x': 4, 'y': 4}]\n"
    assert "service `slow` is not ready after 10 s: its `open` has not returned; its log is" in ran.stderr


def test_a_module_that_is_missing_is_named_with_the_environment(tmp_path: Path) -> None:
    (tmp_path / "gone_tomorrow.py").write_text("def f(row):\n    return {'y': row['x']}\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import gone_tomorrow  # type: ignore[import-not-found]

        stream = pn.from_arrow(NUMBERS).map(gone_tomorrow.f, output={"y": int})
        (tmp_path / "gone_tomorrow.py").unlink()
        for cached in (tmp_path / "__pycache__").glob("*"):
            cached.unlink()
        with pytest.raises(pn.InvalidError, match=r"module `gone_tomorrow` is not there in the service's environment, .*python"):
            stream.to_arrow()
    finally:
        sys.path.remove(str(tmp_path))


def test_instances_run_in_another_environment(tmp_path: Path) -> None:
    import venv

    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    [site] = (tmp_path / "venv/lib").glob("python*/site-packages")
    shout = Shout(python=str(tmp_path / "venv/bin/python"))
    with pytest.raises(pn.InvalidError, match="cannot load pelton .*No module named '(pelton|pyarrow)'.*; install this package there"):
        pn.from_pylist([{"text": "a"}]).call(shout.whisper).to_arrow()
    # What this environment has, the other one has, too; and a module of its own.
    (site / "this.pth").write_text("\n".join(path for path in sys.path if path))
    (site / "only_there.py").write_text("where = 'there'\n")

    class There(pn.Service):
        @pn.method(output={"executable": str, "where": str})
        def tell(self, batch: pa.RecordBatch) -> Any:
            import only_there  # type: ignore[import-not-found]

            return {"executable": [sys.executable], "where": [only_there.where]}

    [row] = pn.from_pylist([{"x": 1}]).call(There(python=str(tmp_path / "venv/bin/python")).tell).to_pylist()
    assert row == {"x": 1, "executable": str(tmp_path / "venv/bin/python"), "where": "there"}


def test_what_cannot_be_pickled_is_told_before_anything_starts() -> None:
    lock = threading.Lock()
    with pytest.raises(pn.InvalidError, match=r"service `lambda` cannot be pickled: TypeError.*is made in `open`"):
        pn.from_arrow(NUMBERS).map(lambda row: {"y": lock.locked()}, output={"y": bool}).to_arrow()
    large = bytes(3 << 20)
    with pytest.raises(pn.InvalidError, match=r"is 3 MiB when pickled, and at most 2 MiB travel with it; load what is large in `open`"):
        pn.from_arrow(NUMBERS).map(lambda row: {"y": len(large)}, output={"y": int}).to_arrow()


def test_settings_that_cannot_be_are_refused() -> None:
    source = pn.from_arrow(NUMBERS)
    with pytest.raises(pn.InvalidError, match="unexpected keyword argument 'speed'; a service has the settings name, replicas"):
        Shout().options(speed=3)
    with pytest.raises(pn.InvalidError, match="python='/nowhere/python' does not run"):
        source.call(Shout(python="/nowhere/python").whisper, columns=["x"]).to_arrow()
    with pytest.raises(pn.InvalidError, match="unknown field `speed`"):
        source.call(Shout(settings={"speed": 3}).whisper, columns=["x"]).to_arrow()
    with pytest.raises(pn.InvalidError, match="say how many calls of it may run at a time"):

        @pn.method
        async def unbounded(self: Any, batch: pa.RecordBatch) -> Any: ...

    with pytest.raises(pn.InvalidError, match=r"takes column `text`, and the rows have \(x: int64\)"):
        source.call(Shout().whisper, columns=["text"]).to_arrow()


def test_a_script_defines_services_and_prints_to_their_logs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import logging
import pyarrow as pa
import pelton as pn

class Twice(pn.Service):
    def open(self, ctx):
        print("printed by", ctx.service)
        logging.getLogger("mine").warning("logged by it")

    @pn.method(output={"y": int})
    def run(self, batch):
        return {"y": [2 * x for x in batch["x"].to_pylist()]}

if __name__ == "__main__":
    pn.from_pylist([{"x": 4}]).call(Twice().run).write_json("out")
    print(open("out/.pelton/logs/twice-0.log").read())
"""
    )
    ran = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "printed by twice" in ran.stdout and "WARNING mine: logged by it" in ran.stdout
    [part] = (tmp_path / "out").glob("*.jsonl")
    assert part.read_text() == '{"x":4,"y":8}\n'


class Declares(pn.Service):
    @pn.method(input={"text": str}, output={"size": int})
    def measure(self, batch: pa.RecordBatch) -> Any:
        return {"size": [len(t) for t in batch["text"].to_pylist()]}


class DeclaresNoInput(pn.Service):
    @pn.method(output={"size": int})
    def measure(self, batch: pa.RecordBatch) -> Any:
        return {"size": [0] * len(batch)}


def test_a_service_writes_its_declaration() -> None:
    text = Declares(replicas=3, name="declares").declaration()
    assert 'name = "declares"' in text
    assert "pelton._instance" in text and sys.executable in text
    with pytest.raises(pn.InvalidError, match="`measure` .* does not say its columns"):
        DeclaresNoInput().declaration()
