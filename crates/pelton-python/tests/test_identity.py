"""Instances that a killed program leaves are taken over by its next run, if they are what it wants: services of scripts, too."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import instances

SCRIPT = '''
import os
import time

import numpy as np
import pyarrow as pa

import helping
import pelton as pn

# %(comment)s
FACTOR = %(factor)d
WEIGHTS = np.arange(4) * 0.5
KINDS = {"one", "two", "three"}


def times(x):
    return x * FACTOR


class Slow(pn.Service):
    """%(comment)s"""

    def __init__(self, start, **settings):
        super().__init__(**settings)
        self.start = start

    def open(self, ctx):
        open("opened", "a").write(f"{os.getpid()}\\n")

    @pn.method(max_rows=4, output={"y": int})
    def run(self, batch: pa.RecordBatch):
        time.sleep(0.05)
        kind = len(KINDS & {"one", "two"}) + int(WEIGHTS.sum()) + helping.NOTHING
        return {"y": [times(x) + self.start + 0 * kind for x in batch["x"].to_pylist()]}


if __name__ == "__main__":
    slow = Slow(%(start)d, settings={"lease": "60s"})
    table = pa.table({"x": list(range(400))})
    print(pn.from_arrow(table).call(slow.run).write_json("out", checkpoint_interval=0.2).rows)
'''
AS_IT_WAS = {"comment": "as it was", "factor": 2, "start": 1}


class Program:
    """A script that is killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "helping.py").write_text("NOTHING = 0\n")

    def start(self, **changes: object) -> subprocess.Popen[str]:
        (self.folder / "script.py").write_text(SCRIPT % {**AS_IT_WAS, **changes})
        # Hashes of texts, and so the order of sets, differ from run to run.
        return subprocess.Popen([sys.executable, "script.py"], cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def opened(self) -> list[str]:
        file = self.folder / "opened"
        return file.read_text().split() if file.exists() else []

    def kill_under_way(self) -> None:
        """Runs it until there is a checkpoint, and kills it."""
        running = self.start()
        checkpoints = self.folder / "out/.pelton/checkpoints"
        end = time.monotonic() + 60
        while not (checkpoints.is_dir() and any(checkpoints.iterdir())):
            assert running.poll() is None and time.monotonic() < end, running.communicate()
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.communicate()


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.mark.parametrize("changes", [{}, {"comment": "another comment,\n# on more lines"}])
def test_a_script_finds_the_instances_of_its_last_run(program: Program, changes: dict[str, object]) -> None:
    program.kill_under_way()
    told, said = program.start(**changes).communicate(timeout=100)
    assert int(told) <= 400, said
    assert len(program.opened()) == 1, "a second instance was started"
    rows = [line for part in (program.folder / "out").glob("part-*") for line in part.read_text().splitlines()]
    assert len(rows) == len(set(rows)) == 400


@pytest.mark.parametrize("changes", [{"factor": 3}, {"start": 2}, {"module": "NOTHING = 0 * 1\n"}])
def test_another_service_is_another(program: Program, changes: dict[str, object]) -> None:
    program.kill_under_way()
    if "module" in changes:
        (program.folder / "helping.py").write_text(str(changes["module"]))
    _, said = program.start(**changes).communicate(timeout=100)
    assert len(program.opened()) == 2, said
    # The one that was left is told to leave.
    end = time.monotonic() + 30
    while instances() and time.monotonic() < end:
        time.sleep(0.05)
    assert not instances()
