"""What the documents show runs as they show it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[3]


def test_the_readme_s_program_runs_as_written(tmp_path: Path) -> None:
    [program] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "program.py").write_text(program)
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("objects.md", "sinks.md"):
        shutil.copy(ROOT / "docs" / name, docs)
    run = [sys.executable, "program.py"]
    ran = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    written = [line for file in docs.iterdir() for line in file.read_text().splitlines() if line]
    assert sorted(pq.read_table(tmp_path / "index")["text"].to_pylist()) == sorted(written)
    assert f"Summary(end='finished', rows={len(written)}, errors=0" in ran.stdout
    assert "(3 rows)" in ran.stdout
    again = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert "Summary(end='already-finished', rows=0" in again.stdout, again.stderr


def test_the_command_comes_with_the_package(tmp_path: Path) -> None:
    pelton = [sys.executable, "-m", "pelton._command"]
    helped = subprocess.run([*pelton, "--help"], capture_output=True, text=True, timeout=60)
    assert helped.returncode == 0 and "savepoint" in helped.stdout
    refused = subprocess.run([*pelton, "search", str(tmp_path), "a question"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1 and refused.stderr.startswith("error: no index here")
