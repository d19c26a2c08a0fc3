"""What people see of a job while it runs: how far it is, and what its instances print and log.

In a terminal it is one line that is written over, in a notebook one output that is updated; nothing where neither is there, or where the
environment says so: ``PELTON_PROGRESS=0``, ``PELTON_SHOW_LOGS=0``. With ``1`` it is told anywhere, on standard error.
"""

from __future__ import annotations

import html
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._pelton import Running

#: What is over sooner shows nothing.
_PATIENCE = 1.0
_LOOK_EVERY = 0.2
#: Where nothing can be written over, a line is written this often.
_PLAIN_EVERY = 10.0
#: What the engine says in an instance's log while all goes well.
_OF_THE_ENGINE = re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.,]+Z?\s+(TRACE|DEBUG|INFO) pelton\b")


def in_notebook() -> bool:
    """Whether this process is a kernel of Jupyter's."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _wanted(variable: str) -> bool:
    said = os.environ.get(variable)
    return said != "0" if said else in_notebook() or sys.stderr.isatty()


class Watch:
    """Shows one job, from a thread of its own. Close it before the job's folder goes."""

    def __init__(self, running: Running, logs: Path, progress: bool) -> None:
        self._line = _line() if progress and _wanted("PELTON_PROGRESS") else None
        self._logs = _Logs(logs) if _wanted("PELTON_SHOW_LOGS") else None
        self._running = running
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if self._line is not None or self._logs is not None:
            self._thread = threading.Thread(target=self._watch, name="pelton-watch", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        began = time.monotonic()
        while not self._over.wait(_LOOK_EVERY):
            self._tell_logs()
            if self._line is not None and time.monotonic() - began >= _PATIENCE:
                self._line.show(self._described())

    def _described(self) -> str:
        told = self._running.progress()
        return described(json.loads(told)) if told is not None else "starting"

    def _tell_logs(self) -> None:
        lines = self._logs.more() if self._logs is not None else []
        if lines:
            if self._line is not None:
                self._line.clear()
            print("\n".join(lines), file=sys.stderr, flush=True)

    def close(self, end: str | None) -> None:
        """Ends it, and says how the job ended; None: not by itself."""
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        self._thread = None
        self._tell_logs()
        if self._line is not None:
            self._line.end(end or f"ended | {self._described()}")


def described(told: dict[str, Any]) -> str:
    """How far a job is, in one line."""
    seconds = told["seconds"]
    parts = ["stopping"] if told["stopping"] else []
    sources = [node for node in told["nodes"] if node["splits_total"] > 1]
    if sources:
        parts.append(f"files {sum(n['splits_done'] for n in sources)}/{sum(n['splits_total'] for n in sources)}")
    rows = sum(node["rows_in"] for node in told["nodes"] if node["name"] == "rows")
    parts.append(f"rows {rows} ({rows / max(seconds, 0.1):.0f}/s)")
    errors = sum(node["errors"] for node in told["nodes"])
    if errors:
        parts.append(f"errors {errors}")
    for service in told["services"]:
        text = f"{service['name']} {service['ready']}/{service['wanted']} ready, {service['held']} held, {service['waiting']} waiting"
        parts.append(text if service["restarting"] is None else f"{service['name']} restarting: {service['restarting'].splitlines()[0]}")
    parts.append(f"{seconds:.0f} s")
    return " | ".join(parts)


class _Logs:
    """What is added to the logs of a job's instances."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # What is there is of earlier runs.
        self._read = {log: log.stat().st_size for log in folder.glob("*.log")}

    def more(self) -> list[str]:
        """The lines that came since, each with its instance's name; those of the engine only where something is wrong."""
        lines = []
        for log in sorted(self._folder.glob("*.log")):
            try:
                with log.open("rb") as file:
                    file.seek(self._read.get(log, 0))
                    text = file.read()
            except OSError:
                # Whoever removed it knows why; the job goes on.
                continue
            # Half a line waits for its end.
            whole = text[: text.rfind(b"\n") + 1]
            self._read[log] = self._read.get(log, 0) + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                if not _OF_THE_ENGINE.match(line):
                    lines.append(f"[{log.stem}] {line}")
        return lines


class _Terminal:
    """A line that is written over."""

    def show(self, text: str) -> None:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        print(f"\r\x1b[2K{text[: columns - 1]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)

    def end(self, text: str) -> None:
        self.clear()


class _Plain:
    """Lines, now and then."""

    def __init__(self) -> None:
        self._last = time.monotonic() - _PLAIN_EVERY

    def show(self, text: str) -> None:
        if time.monotonic() - self._last >= _PLAIN_EVERY:
            self._last = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None: ...

    def end(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Notebook:
    """An output of a cell that is updated."""

    def __init__(self) -> None:
        self._update: Callable[[Any], None] | None = None

    def show(self, text: str) -> None:
        from IPython.display import HTML, display

        shown = HTML(f"<code>{html.escape(text)}</code>")
        if self._update is None:
            self._update = display(shown, display_id=True).update
        else:
            self._update(shown)

    def clear(self) -> None: ...

    def end(self, text: str) -> None:
        if self._update is not None:
            self.show(text)


def _line() -> _Terminal | _Plain | _Notebook:
    if in_notebook():
        return _Notebook()
    return _Terminal() if sys.stderr.isatty() else _Plain()
