"""Pipelines: functions, expressions, sources, writing, leaving early."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pelton as pn
from conftest import instances

NUMBERS = pa.table({"x": list(range(100))})


def numbers(upto: int) -> Iterator[dict[str, int]]:
    return ({"x": x} for x in range(upto))


def test_functions_run_in_worker_processes() -> None:
    out = pn.from_arrow(NUMBERS).map(lambda row: {"y": row["x"] * 2, "pid": os.getpid()}).to_arrow()
    assert out["y"].to_pylist() == [2 * x for x in range(100)]
    [pid] = set(out["pid"].to_pylist())
    assert pid != os.getpid()


def test_functions_give_fewer_and_more_rows() -> None:
    stream = pn.from_iter(numbers(20)).filter(lambda row: row["x"] % 2 == 0).flat_map(lambda row: [{"y": row["x"]}] * row["x"])
    assert [row["y"] for row in stream] == [x for x in range(0, 20, 2) for _ in range(x)]


def test_batches_in_any_format_and_a_class_that_is_made_once() -> None:
    class Count:
        def __init__(self) -> None:
            self.batches = 0

        def __call__(self, frame: pd.DataFrame) -> pd.DataFrame:
            self.batches += 1
            return pd.DataFrame({"rows": [len(frame)], "batch": [self.batches], "kind": [type(frame).__name__]})

    rows = pn.from_arrow(NUMBERS).map_batches(Count, batch_rows=40).to_pylist()
    assert [(r["rows"], r["batch"]) for r in rows] == [(40, 1), (40, 2), (20, 3)]
    assert {r["kind"] for r in rows} == {"DataFrame"}


def test_a_row_for_which_a_function_raises_is_an_error_of_that_row() -> None:
    mapped = pn.from_arrow(NUMBERS).map(lambda row: {"y": 10 // (row["x"] - 3)}, output={"y": int}, on_error="error-output")
    assert mapped.count() == 99
    [error] = mapped.errors().to_pylist()
    assert error["row"] == '{"x":3}' and "ZeroDivisionError" in error["message"]


def test_expressions_are_evaluated_by_the_engine() -> None:
    table = pa.table({"a": [1, 2, None], "b": [0.5, 1.5, 2.5], "t": ["x.md", "y.txt", None]})
    a, b, t = pn.col("a"), pn.col("b"), pn.col("t")
    out = pn.from_arrow(table).select(
        "a", t.length().alias("n"), plus=a + b, half=a / 2, rest=a % 2, big=(a > 1) & (b < 2), none=a.is_null(), filled=a.fill_null(-1),
        md=t.ends_with(".md"), text=a.cast(str), one=1, neg=-1 * b,
    )  # fmt: skip
    assert out.schema.names == ["a", "n", "plus", "half", "rest", "big", "none", "filled", "md", "text", "one", "neg"]
    assert out.to_pylist() == [
        {"a": 1, "n": 4, "plus": 1.5, "half": 0.5, "rest": 1, "big": False, "none": False, "filled": 1, "md": True, "text": "1", "one": 1, "neg": -0.5},
        {"a": 2, "n": 5, "plus": 3.5, "half": 1.0, "rest": 0, "big": True, "none": False, "filled": 2, "md": False, "text": "2", "one": 1, "neg": -1.5},
        {"a": None, "n": None, "plus": None, "half": None, "rest": None, "big": False, "none": True, "filled": -1, "md": None, "text": None, "one": 1, "neg": -2.5},
    ]  # fmt: skip
    assert pn.from_arrow(table).select(neg=-a, some=a.is_in([2, 3]), none=a.is_in([])).to_pylist()[1] == {"neg": -2, "some": True, "none": False}
    assert pn.from_arrow(table).filter(~(a == 1)).with_columns(a=a * 10, c=b).drop("t").rename({"b": "B"}).to_pylist() == [
        {"a": 20, "B": 1.5, "c": 1.5}
    ]


class Scores(pn.Service):
    """Counts its calls, so that a test sees how often a row was asked for."""

    def open(self, ctx: pn.Context) -> None:
        self.rows = 0

    @pn.method(input={"text": str}, output={"score": float})
    def score(self, batch: pa.RecordBatch) -> Any:
        self.rows += batch.num_rows
        return {"score": [len(text) / 10 for text in batch.column(0).to_pylist()]}

    @pn.method(output={"n": int})
    def asked(self, batch: pa.RecordBatch) -> Any:
        return {"n": [self.rows] * batch.num_rows}

    @pn.method(output={"a": int, "b": int})
    def two(self, batch: pa.RecordBatch) -> Any: ...


def test_services_are_called_within_expressions() -> None:
    scores, text = Scores(), pn.col("text")
    source = pn.from_pylist([{"text": "a" * n, "score": -1.0} for n in range(10)])
    # A column that has the name of the answer stays what it was, and an argument may be computed.
    out = source.with_columns(double=scores.score(text) * 2, number=scores.score(pn.col("score").cast(str)))
    assert out.schema.names == ["text", "score", "double", "number"]
    assert out.to_arrow()["double"].to_pylist() == [n / 5 for n in range(10)]
    assert set(out.to_arrow()["number"].to_pylist()) == {0.4} and set(out.to_arrow()["score"].to_pylist()) == {-1.0}
    kept = source.filter((scores.score(text) > 0.5) & (scores.score(text) < 0.8))
    assert kept.schema.names == ["text", "score"]
    assert [len(row["text"]) for row in kept] == [6, 7]
    # The same call is made once.
    once = source.select(a=scores.score(text), b=scores.score(text) + 1).call(scores.asked, columns=["a"])
    assert once.explain().count("call `") == 2
    with pytest.raises(pn.InvalidError, match="method `two` does not give exactly one column, so it cannot stand in an expression; use stream.call"):
        source.select(x=scores.two(text))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda s: s.select(pn.col("y")), r"no column `y`; there are \(x: Int64"),
        (lambda s: s.filter(pn.col("x") + 1), "is int64, and must be true or false"),
        (lambda s: s.select(pn.col("x") + "text"), "Cannot cast string 'text'"),
        (lambda s: s.select(pn.lit(3)), "has no name"),
        (lambda s: s.drop("y"), "no column `y`"),
        (lambda s: s.drop("x"), r"no column is left of \(x: int64\)"),
        (lambda s: s.select(), "no column is left"),
        (lambda s: s.rename({"x": "y"}).with_columns(x=1).rename({"x": "y"}), "two columns called `y`"),
        (lambda s: s.union(s.select(y=pn.col("x"))), r"union of \(x: int64\) and \(y: int64\)"),
        (lambda s: s.call(lambda row: row), "for a plain function use map or map_batches"),
        (lambda s: s.errors(), "only calls and functions have an error output"),
        (lambda s: s.map(lambda row: 3), "gave a list, which has no column names|gave a int"),
    ],
)
def test_mistakes_in_a_pipeline_are_told(made: Any, message: str) -> None:
    with pytest.raises((pn.InvalidError, pn.UserCodeError), match=message):
        made(pn.from_arrow(NUMBERS)).to_arrow()


def test_an_expression_has_no_truth_of_its_own() -> None:
    with pytest.raises(pn.InvalidError, match="use & | ~ in place"):
        bool(pn.col("x") > 1 and pn.col("x") < 3)


def test_streams_are_united() -> None:
    one, other = pn.from_arrow(NUMBERS.slice(0, 3)), pn.from_arrow(NUMBERS.slice(50, 2))
    assert sorted(r["x"] for r in one.union(other)) == [0, 1, 2, 50, 51]


def test_groups_are_aggregated_over_all_batches() -> None:
    frame = pd.DataFrame({"k": [x % 3 for x in range(10_000)], "x": [x if x % 7 else None for x in range(10_000)], "b": True})
    grouped = pn.from_pandas(frame).group_by("k").agg(
        total=("x", "sum"), mean=("x", "mean"), least=("x", "min"), n=("x", "count"), all=("b", "all")
    )  # fmt: skip
    got = grouped.filter(pn.col("k") < 2).to_pandas().sort_values("k").reset_index(drop=True)
    groups = frame.groupby("k")["x"]
    expected = pd.DataFrame({"total": groups.sum(), "mean": groups.mean(), "least": groups.min(), "n": groups.count()})
    expected = expected.reset_index().query("k < 2")
    assert got["all"].all()
    pd.testing.assert_frame_equal(got.drop(columns="all"), expected, check_dtype=False)
    assert pn.from_arrow(NUMBERS.slice(0, 0)).group_by("x").agg(n=("x", "count")).to_pylist() == []
    with pytest.raises(pn.InvalidError, match=r"agg: n=\('x', 'median'\); use \(column, how\), where how is one of all, any, count"):
        pn.from_arrow(NUMBERS).group_by("x").agg(n=("x", "median"))
    with pytest.raises(pn.InvalidError, match="group_by: there is no column `y`"):
        pn.from_arrow(NUMBERS).group_by("y").agg(n=("x", "count")).to_arrow()


def test_limit_ends_what_is_before_it_and_what_follows_gets_no_more() -> None:
    taken = []

    def endless() -> Iterator[dict[str, int]]:
        for x in itertools.count():
            taken.append(x)
            yield {"x": x}

    assert pn.from_iter(endless).take(3) == [{"x": 0}, {"x": 1}, {"x": 2}]
    assert len(taken) < 10_000
    assert pn.from_iter(endless).limit(5).map(lambda row: {"y": row["x"]}).to_pylist() == [{"y": y} for y in range(5)]
    assert pn.from_arrow(NUMBERS).limit(0).count() == 0


def test_an_iterator_that_raises_fails_the_job_with_its_traceback() -> None:
    def breaks() -> Iterator[dict[str, int]]:
        yield {"x": 1}
        raise KeyError("no more")

    with pytest.raises(pn.UserCodeError, match=r"KeyError: 'no more'(.|\n)*in breaks"):
        pn.from_iter(breaks, columns={"x": int}).to_arrow()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_iterator_that_falls_silent_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def speechless(_: BaseException) -> tuple[str, str]:
        raise RuntimeError("cannot be described")

    monkeypatch.setattr("pelton._run.describe", speechless)

    def breaks() -> Iterator[dict[str, int]]:
        yield {"x": 1}
        raise ValueError("no more")

    with pytest.raises(pn.PeltonError, match="stopped without an end"):
        pn.from_iter(breaks, columns={"x": int}).to_arrow()


def test_a_generator_is_read_once_and_a_function_again() -> None:
    once = pn.from_iter(numbers(3))
    assert once.count() == 3
    with pytest.raises(pn.InvalidError, match="was read already; give a function that makes one"):
        once.count()
    again = pn.from_iter(lambda: numbers(3))
    assert again.count() == again.count() == 3


def test_a_generator_is_neither_explained_nor_learnt_away() -> None:
    limited = pn.from_iter(numbers(50)).limit(5).map(lambda row: {"y": -row["x"]})
    assert "`first 5 of what is before`" in limited.explain()
    assert limited.to_pylist() == [{"y": -y} for y in range(5)]


def test_tables_of_numpy_memory_and_slices_come_as_they_are() -> None:
    frame = pd.DataFrame({"x": range(10_000), "t": [str(i) for i in range(10_000)]})
    assert pn.from_pandas(frame).to_pandas().equals(frame)
    assert pn.from_arrow(pa.Table.from_pandas(frame).slice(5000, 10)).to_arrow()["x"].to_pylist() == list(range(5000, 5010))


def test_leaving_a_loop_early_ends_the_job_and_its_processes() -> None:
    def slow(row: dict[str, int]) -> dict[str, int]:
        time.sleep(0.01)
        return {"y": row["x"]}

    rows = pn.from_iter(({"x": x} for x in itertools.count()), columns={"x": int}).map(slow, output={"y": int}).iter_rows()
    assert next(rows) == {"y": 0}
    assert instances()
    rows.close()  # type: ignore[attr-defined]
    assert not instances()


def test_a_timeout_ends_the_job() -> None:
    waiting = threading.Event()
    stuck = pn.from_iter((waiting.wait(30) for _ in range(1)), columns={"x": int})
    with pytest.raises(TimeoutError):
        stuck.take(1, timeout=0.5)
    waiting.set()


def test_ctrl_c_ends_a_job_and_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import itertools, signal
import pelton as pn

# A shell starts what runs in its background deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

rows = pn.from_iter(({"x": x} for x in itertools.count()), columns={"x": int})
try:
    for row in rows.map(lambda row: {"y": row["x"]}, output={"y": int}):
        if row["y"] == 100:
            print("going", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    )
    program = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert program.stdout is not None
    assert program.stdout.readline() == "going\n"
    assert instances()
    program.send_signal(signal.SIGINT)
    assert program.stdout.readline() == "interrupted\n"
    assert program.wait(timeout=30) == 0
    program.stdout.close()


def test_files_by_pattern(tmp_path: Path) -> None:
    tmp_path = tmp_path / "docs"
    for name in ("a.md", "b.txt", "deep/c.md", "deep/er/d.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\nsecond line\n")

    def uris(path: Any) -> list[str]:
        return [row["uri"] for row in pn.read_files(path)]

    assert uris(tmp_path) == ["a.md", "b.txt", "deep/c.md", "deep/er/d.md"]
    assert uris(f"{tmp_path}/**/*.md") == ["a.md", "deep/c.md", "deep/er/d.md"]
    assert uris(f"{tmp_path}/*.md") == ["a.md"]
    assert uris([tmp_path / "b.txt", tmp_path / "deep/c.md"]) == ["b.txt", "deep/c.md"]
    lines = pn.read_lines(tmp_path / "a.md").to_pylist()
    assert lines == [{"line": 1, "text": "a.md"}, {"line": 2, "text": "second line"}]
    with pytest.raises(pn.InvalidError, match="no file matches"):
        uris(f"{tmp_path}/*.pdf")
    with pytest.raises(pn.InvalidError, match="no such folder or file"):
        uris(tmp_path / "nowhere")


def test_files_of_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": range(5000), "t": [f"t{n}" for n in range(5000)]})
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.Table.from_pandas(frame), folder / "a.parquet")
    frame.to_csv(folder / "a.csv", index=False)
    frame.to_json(folder / "a.jsonl", orient="records", lines=True)
    for read in (pn.read_parquet, pn.read_csv, pn.read_json):
        assert read(folder).to_pandas().equals(frame), read
    narrow = pn.read_json(folder / "a.jsonl", columns={"t": str}).to_arrow()
    assert narrow.schema.names == ["t"] and narrow.num_rows == 5000
    with pytest.raises(pn.InvalidError, match="no file"):
        pn.read_parquet(tmp_path / "in" / "*.csv.parquet").to_arrow()


def test_written_rows_are_there_once_and_a_second_run_reads_only_what_is_new(tmp_path: Path) -> None:
    inputs, output = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    (inputs / "1.txt").write_text("a\nb\n")

    def run() -> pn.Summary:
        return pn.read_lines(inputs).map(lambda row: {"text": row["text"].upper()}, output={"text": str}).write_parquet(output)

    first = run()
    assert (first.end, first.rows, first.restored_from) == ("finished", 2, None)
    assert run().end == "already-finished"
    (inputs / "2.txt").write_text("c\n")
    assert run().rows == 1
    assert sorted(pq.read_table(output)["text"].to_pylist()) == ["A", "B", "C"]


def test_errors_are_written_beside_the_rows(tmp_path: Path) -> None:
    def odd(row: dict[str, int]) -> dict[str, int]:
        if row["x"] == 5:
            raise ValueError("five")
        return row

    mapped = pn.from_arrow(NUMBERS).map(odd, output={"x": int}, on_error="error-output")
    for number, errors in enumerate([None, mapped.errors()]):
        folder = tmp_path / str(number)
        summary = mapped.write_json(folder, errors=errors)
        assert (summary.rows, summary.errors) == (99, 1)
        [part] = folder.glob("errors-*.jsonl")
        assert "ValueError: five" in json.loads(part.read_text())["message"]


def test_ctrl_c_stops_a_job_that_writes_with_a_checkpoint(tmp_path: Path) -> None:
    script, lines, output = tmp_path / "script.py", tmp_path / "lines.txt", tmp_path / "out"
    script.write_text("import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n" + KILLED)
    lines.write_text("".join(f"{i}\n" for i in range(4000)))
    command = [sys.executable, str(script), str(lines), str(output)]
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if list(output.glob("*.parquet")):
            break
        time.sleep(0.05)
    program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=60)
    assert "KeyboardInterrupt" in said and program.returncode != 0
    assert not instances()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.stdout == "finished\n", ended.stderr
    assert sorted(pq.read_table(output)["line"].to_pylist()) == list(range(1, 4001))


KILLED = """
import sys, time
import pelton as pn

class Slow(pn.Service):
    @pn.method(max_rows=16, output={"y": int})
    def run(self, batch):
        time.sleep(0.02)
        return {"y": [2 * x for x in batch["line"].to_pylist()]}

if __name__ == "__main__":
    rows = pn.read_lines(sys.argv[1]).call(Slow(replicas=2).run, columns=["line"])
    print(rows.write_parquet(sys.argv[2], checkpoint_interval=0.2).end)
"""


def test_a_program_that_is_killed_again_and_again_loses_and_doubles_nothing(tmp_path: Path) -> None:
    script, lines, output = tmp_path / "script.py", tmp_path / "lines.txt", tmp_path / "out"
    script.write_text(KILLED)
    lines.write_text("".join(f"{i}\n" for i in range(4000)))
    command = [sys.executable, str(script), str(lines), str(output)]
    for _ in range(3):
        program = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        before = len(list(output.glob("*.parquet")))
        # In the middle: once it has made more visible.
        for _ in range(600):
            if len(list(output.glob("*.parquet"))) > before or program.poll() is not None:
                break
            time.sleep(0.05)
        assert program.poll() is None, "it was to be killed while it works"
        program.kill()
        program.wait()
    killed = instances()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.stdout == "finished\n", ended.stderr
    table = pq.read_table(output)
    assert sorted(table["line"].to_pylist()) == list(range(1, 4001))
    assert all(row["y"] == 2 * row["line"] for row in table.to_pylist())


def test_instances_that_are_killed_under_load_lose_and_double_nothing() -> None:
    class Slow(pn.Service):
        @pn.method(max_rows=16, output={"y": int})
        def run(self, batch: pa.RecordBatch) -> Any:
            time.sleep(0.01)
            return {"y": [2 * x for x in batch["x"].to_pylist()]}

    table = pa.table({"x": list(range(6000))})
    rows, kills = [], 0
    for batch in pn.from_arrow(table).call(Slow(replicas=2).run).iter_batches():
        rows += batch.to_pylist()
        if len(rows) > 1000 * (kills + 1) and kills < 4:
            os.kill(next(iter(instances())), signal.SIGKILL)
            kills += 1
    assert kills >= 3
    assert [row["x"] for row in rows] == list(range(6000))
    assert all(row["y"] == 2 * row["x"] for row in rows)


def test_show_and_explain(capsys: pytest.CaptureFixture[str]) -> None:
    stream = pn.from_pylist([{"text": "a" * 60, "v": [1.0] * 9}]).map(lambda row: row, output={"text": str, "v": list[float]})
    stream.show()
    shown = capsys.readouterr().out
    assert "aaa..." in shown and "[1.0, 1.0, 1.0, ...] (9)" in shown and "list<item: double>" in shown
    text = stream.explain()
    assert "call `map lambda`" in text and "-m pelton._instance" in text and not instances()


def test_every_kind_of_error_has_its_exception() -> None:
    from pelton import _pelton
    from pelton._errors import BY_KIND, exception

    assert set(_pelton.kinds()) == set(BY_KIND)
    for kind in _pelton.kinds():
        error = exception(kind, "executed", True, "what happened")
        assert type(error).__name__ in pn.__all__ and error.kind == kind and str(error) == "what happened"
