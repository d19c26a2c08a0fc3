"""In a real kernel of Jupyter's: what cells show, a second run, and cells that are interrupted."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupyter_client
import nbformat
import pytest
from nbclient import NotebookClient

from conftest import instances

#: How long anything may take.
PATIENCE = 120

SERVICE = """
import time
import pyarrow as pa
import pelton as pn

class Slow(pn.Service):
    def open(self, ctx):
        print("opened by hand")

    @pn.method(output={"y": int})
    def twice(self, batch: pa.RecordBatch):
        time.sleep(0.1)
        return {"y": [2 * x for x in batch["x"].to_pylist()]}

numbers = pn.from_arrow(pa.table({"x": list(range(1000))}))
"""


def text_of(cell: Any, kind: str) -> str:
    """What a cell shows of one kind: what it printed, or outputs of a type."""
    outputs = cell.outputs
    if kind in ("stdout", "stderr"):
        return "".join(output["text"] for output in outputs if output.get("name") == kind)
    return "\n".join(output["data"][kind] for output in outputs if kind in output.get("data", {}))


def test_cells_show_rows_progress_and_logs_and_run_again(tmp_path: Path) -> None:
    cells = [
        SERVICE,
        "numbers.call(Slow().twice)",
        "numbers.call(Slow().twice).show(3)",
        "numbers.call(Slow().twice).write_json('out', fresh=True)",
        "sum(row['y'] for row in numbers.call(Slow().twice).take(10))",
        "numbers.explain()",
        "pn.from_pylist([{'t': '<b>'}]).map(lambda row: {'t': row['t'], 'i': __import__('PIL.Image').Image.new('L', (9, 5))}).show()",
    ]
    # The same cells a second time, in the same kernel.
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells + cells[1:]])
    NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    _, *shown = notebook.cells
    for stream, rows, written, taken, explained, image in (shown[:6], shown[6:]):
        assert "not run yet" in text_of(stream, "text/html") and "x: int64, y: int64" in text_of(stream, "text/html")
        assert "<table>" in text_of(rows, "text/html") and "(3 rows)" in text_of(rows, "text/html")
        html = text_of(written, "text/html")
        # The progress of the job, updated in place to its last word, and what the job did.
        assert "<code>finished | rows 1000 | " in html and "end=&#x27;finished&#x27;, rows=1000" in html
        assert len([output for output in written.outputs if "| rows 1000 |" in output.get("data", {}).get("text/html", "")]) == 1
        assert "[slow-0] opened by hand" in text_of(written, "stderr") and "INFO" not in text_of(written, "stderr")
        assert text_of(taken, "text/plain") == "90"
        assert "<pre>stage 0" in text_of(explained, "text/html")
        assert "&lt;b&gt;" in text_of(image, "text/html") and "L image 9 x 5" in text_of(image, "text/html")
        assert 'src="data:image/png;base64,' in text_of(image, "text/html")
    assert sum(len(part.read_text().splitlines()) for part in (tmp_path / "out").glob("part-*")) == 2000


TERMINAL = SERVICE + """
numbers.call(Slow().twice).write_json('out')
"""


def in_terminal(folder: Path, **environment: str) -> str:
    """What a program says on its standard error, which is a terminal."""
    ours, theirs = os.openpty()
    with subprocess.Popen([sys.executable, "-c", TERMINAL], cwd=folder, stderr=theirs, env={**os.environ, **environment}) as program:
        os.close(theirs)
        said = b""
        # At the end of the program a read fails.
        with contextlib.suppress(OSError):
            while more := os.read(ours, 65536):
                said += more
        os.close(ours)
    assert program.returncode == 0, said
    return said.decode()


def test_a_terminal_shows_a_line_that_is_written_over_and_the_logs(tmp_path: Path) -> None:
    said = in_terminal(tmp_path)
    assert "\r\x1b[2Krows " in said and "slow 1/1 ready" in said and said.endswith("\r\x1b[2K")
    assert "[slow-0] opened by hand\r\n" in said
    (tmp_path / "quiet").mkdir()
    assert in_terminal(tmp_path / "quiet", PELTON_PROGRESS="0", PELTON_SHOW_LOGS="0") == ""
    # Without a terminal it is said only where somebody asks for it.
    (tmp_path / "pipe").mkdir()
    for wanted, shown in (("", False), ("1", True)):
        environment = {**os.environ, "PELTON_PROGRESS": wanted, "PELTON_SHOW_LOGS": wanted}
        command = [sys.executable, "-c", TERMINAL.replace("'out'", f"'out{wanted}'")]
        ran = subprocess.run(command, cwd=tmp_path / "pipe", env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert ran.returncode == 0 and bool(ran.stderr) == shown, ran.stderr
        assert ("[slow-0] opened by hand\n" in ran.stderr) == shown and ("finished | rows 1000 | " in ran.stderr) == shown


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Any]:
    manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3", cwd=str(tmp_path), env=dict(os.environ))
    try:
        yield manager, client
    finally:
        client.stop_channels()
        if manager.has_kernel:
            manager.shutdown_kernel()


def answered(client: Any, asked: str) -> Any:
    while True:
        reply = client.get_shell_msg(timeout=PATIENCE)
        if reply["parent_header"]["msg_id"] == asked:
            return reply["content"]


def until(so: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    "cell",
    [
        "numbers.call(Slow().twice, columns=['x']).map(lambda row: time.sleep(60) or row, output={'x': int, 'y': int}).to_arrow()",
        "for row in numbers.call(Slow().twice): time.sleep(60)",
        "numbers.map(lambda row: time.sleep(60) or row, output={'x': int}, settings={'kill_after': '1s'}).write_json('out')",
    ],
)
def test_an_interrupted_cell_leaves_nothing_running(kernel: Any, cell: str) -> None:
    manager, client = kernel
    assert answered(client, client.execute(SERVICE))["status"] == "ok"
    asked = client.execute(cell)
    until(instances)
    # Something of it is under way.
    time.sleep(1)
    manager.interrupt_kernel()
    if "write" in cell:
        # The first lets services finish what they hold; the second ends it.
        time.sleep(1)
        manager.interrupt_kernel()
    reply = answered(client, asked)
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    until(lambda: not instances())
    again = answered(client, client.execute("assert numbers.call(Slow().twice).take(1) == [{'x': 0, 'y': 0}]"))
    assert again["status"] == "ok", again


def test_a_kernel_that_ends_takes_its_jobs_along(kernel: Any) -> None:
    manager, client = kernel
    assert answered(client, client.execute(SERVICE))["status"] == "ok"
    left = "rows = numbers.call(Slow().twice).iter_rows(); next(rows)"
    assert answered(client, client.execute(left))["status"] == "ok"
    assert instances()
    manager.shutdown_kernel(now=True)
    # They outlive a program that was killed by a few seconds.
    until(lambda: not instances())
