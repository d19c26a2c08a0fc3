"""What the tests share: services, and a watch over what they leave behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def instances() -> set[int]:
    """The processes that are instances of services, started by this process or by one of its children."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            mark = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"pelton._instance" in words and f"PELTON_TESTS={os.getpid()}".encode() in mark:
            found.add(int(entry.name))
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test leaves no process and no temporary folder behind."""
    monkeypatch.setenv("PELTON_TESTS", str(os.getpid()))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    yield
    # What was killed takes a moment to be gone.
    for _ in range(200):
        if not instances():
            break
        time.sleep(0.05)
    assert not instances(), "instances are left"
    assert not list(temporary.glob("pelton-*")), "folders are left"
