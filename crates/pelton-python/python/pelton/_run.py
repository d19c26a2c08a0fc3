"""From a pipeline to a job that runs."""

from __future__ import annotations

import atexit
import base64
import contextlib
import inspect
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pyarrow as pa

from . import _pelton
from ._errors import InvalidError, PeltonError, describe
from ._identity import identity
from ._remote import RemoteService
from ._service import Method, Service
from ._types import seconds, show
from ._watch import Watch

if TYPE_CHECKING:
    from ._stream import Node

#: A pickled service travels with the bootstrap of its instances.
_MOST_PICKLED = 2 << 20
#: So much of an instance's log is told where a job failed.
_LOG_LINES = 15
#: So many rows are under way at one call: enough for any number of batches, and no more of an iterator is read than that.
_PENDING_ROWS = 8192
#: How far a source reads ahead where the program takes the rows, and may leave at any time.
_EDGE_BYTES = 256 << 10
#: How long instances outlive a program that was killed, where nothing is kept to go on from.
_BRIEF_LEASE = "5s"


class Building:
    """A plan in the making: which node of the pipeline is which of the plan."""

    def __init__(self, *, keeps: bool = False, learns: bool = False, explains: bool = False) -> None:
        self.plan = _pelton.Plan()
        #: Whether the job has a state to go on from.
        self.keeps = keeps
        #: Whether only the first rows matter.
        self.learns = learns
        #: Whether nothing will run.
        self.explains = explains
        self.feeds: list[tuple[_pelton.Feed, Iterator[pa.RecordBatch]]] = []
        self._error_outputs: dict[int, tuple[str, int]] = {}
        self._only_errors: dict[int, tuple[str, int]] = {}
        self._nodes: dict[int, int] = {}
        self._kept: list[Any] = []
        self._names: set[str] = set()
        self._services: dict[int, _Declared] = {}
        self._service_names: set[str] = set()

    def node(self, node: Node) -> int:
        """The plan's node for one of the pipeline, which is put there with all that is before it."""
        self._only_errors.pop(id(node), None)
        return self._node(node)

    def _node(self, node: Node) -> int:
        if id(node) not in self._nodes:
            self._kept.append(node)
            self._nodes[id(node)] = node.put(self)
        return self._nodes[id(node)]

    def errors_of(self, call: Node, name: str, node: int) -> None:
        """Notes that a call has an error output, which something has to read."""
        self._error_outputs[id(call)] = (name, node)

    def errors_node(self, call: Node) -> int:
        """The plan's node for the error output of a call."""
        seen = id(call) in self._nodes
        node = self._node(call)
        name, _ = self._error_outputs.pop(id(call), ("", 0))
        if not name:
            raise InvalidError("errors: the call sends none; give it on_error='error-output'", fate="not-sent")
        if not seen:
            self._only_errors[id(call)] = name, node
        return self.plan.errors(node)

    def finish(self, errors: str | None = None) -> None:
        """Gives everything an end that has none: error outputs go to files in the folder ``errors``, or without one to the program's log."""
        for name, node in self._only_errors.values():
            self.plan.discard(self.name(f"{name} unread"), node)
        for name, node in self._error_outputs.values():
            output, sink = self.plan.errors(node), self.name(f"{name} errors")
            if errors is None:
                self.plan.log_errors(sink, output)
            else:
                self.plan.write_json(sink, output, errors, "errors-" + re.sub("[^a-z0-9]+", "-", name.lower()))
        for declared in self._services.values():
            declared.declare(self.plan, brief=not self.keeps)

    def name(self, wanted: str) -> str:
        """A name that no other node has. The same pipeline gives the same names each time."""
        return _unique(wanted, self._names)

    def call(self, service: Service, method: Method[Any], columns: pa.Schema) -> tuple[int, str]:
        """Notes that a method is called with these columns, and returns the numbers that the plan has for it."""
        declared = self._services.get(id(service))
        if declared is None:
            declared = _Declared(service, _unique(service._service_name(), self._service_names), len(self._services))
            self._services[id(service)] = declared
        declared.use(method, columns)
        return declared.number, declared.name


def _unique(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 2
    while name in taken:
        end = f"-{number}"
        name, number = wanted[: 32 - len(end)] + end if len(wanted) <= 32 else wanted + end, number + 1
    taken.add(name)
    return name


class _Declared:
    """A service of the job, and what is called of it."""

    def __init__(self, service: Service, name: str, number: int) -> None:
        self.service = service
        self.name = name
        self.number = number
        self.inputs: dict[str, pa.Schema] = {}

    def use(self, method: Method[Any], columns: pa.Schema) -> None:
        known = self.inputs.setdefault(method.name, columns)
        if not known.equals(columns):
            raise InvalidError(
                f"method `{method.name}` of service `{self.name}` is called with the columns ({show(known)}) and with ({show(columns)}); "
                "declare what it takes, as in @pn.method(input={...}), or name the same columns in both calls",
                fate="not-sent",
            )

    def declare(self, plan: _pelton.Plan, *, brief: bool) -> None:
        what = f"service `{self.name}`"
        methods = self.service._methods()
        for part in ("open", "close"):
            if inspect.iscoroutinefunction(getattr(self.service, part)):
                raise InvalidError(f"{what}: `{part}` is `async def`, and is called as a plain function; write `def {part}`", fate="not-sent")
        specs = []
        for method in methods.values():
            # Those that are not called need some columns all the same.
            columns = self.inputs.get(method.name, method.input) or pa.schema([pa.field("unused", pa.null())])
            output = method.output if method.output is not None else pa.schema([])
            specs.append((method.name, columns, output, method.streams, method.concurrency))
        settings = self.service._settings
        declaration: dict[str, Any] = {"name": self.name}
        for field, given in (("timeout", settings.timeout), ("attempt_timeout", settings.attempt_timeout)):
            if (limit := seconds(given, f"`{field}` of {what}")) is not None:
                declaration[field] = _humantime(limit)
        if settings.on_error is not None:
            declaration["on_error"] = error_policy(settings.on_error)
        if isinstance(self.service, RemoteService):
            declaration |= self.service._declared()
            plan.other(json.dumps(_with(declaration, settings.settings, what)), specs)
            return
        declaration |= {"batch": _batch_limits(what, methods), "resources": {"cpu": settings.cpus}}
        declaration["instances"] = _instances(what, settings.replicas)
        if brief:
            declaration["lease"] = _BRIEF_LEASE
        declaration = _with(declaration, settings.settings, what)
        python = settings.python or sys.executable
        _check_interpreter(what, python)
        declaration["program"] = [python, "-m", "pelton._instance"]
        if self.service._script is not None:
            plan.other(json.dumps({**declaration, "kind": "scripted", "options": self.service._script}), specs)
            return
        path, pickled = _search_path(), _pickled(what, self.service)
        # Keeping nothing, a job has no next run that could take its instances over.
        known = None if brief else identity(self.service, path, settings.device, _BUILD, specs, is_own=_is_own)
        plan.service(json.dumps(declaration), known, pickled, path, settings.device, _BUILD, specs)


def _with(declaration: dict[str, Any], settings: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A declaration with what else a user has set of it."""
    for field, value in settings.items():
        if field in ("name", "program", "options", "identity", "kind", "remote", "instances"):
            raise InvalidError(f"{what}: `{field}` is no setting of a service in Python", fate="not-sent")
        declaration[field] = {**declaration[field], **value} if isinstance(declaration.get(field), dict) else value
    return declaration


def declaration(service: Service) -> str:
    """What :meth:`Service.declaration` gives."""
    name = service._service_name()
    declared = _Declared(service, name, 0)
    for method in service._methods().values():
        if method.input is None:
            raise InvalidError(
                f"method `{method.name}` of service `{name}` does not say its columns, and no call here does; declare them, as in "
                "@pn.method(input={...})",
                fate="not-sent",
            )
    plan = _pelton.Plan()
    declared.declare(plan, brief=False)
    return plan.declaration(declared.number)


def _batch_limits(what: str, methods: dict[str, Method[Any]]) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for field, limit in (("max_rows", "rows"), ("linger", "linger")):
        given = {name: getattr(m, field) for name, m in methods.items() if getattr(m, field) is not None}
        if len(set(given.values())) > 1:
            told = ", ".join(f"`{name}` {value}" for name, value in given.items())
            raise InvalidError(f"{what}: `{field}` is one for the whole service, and its methods say {told}", fate="not-sent")
        for value in list(given.values())[:1]:
            limits[limit] = _humantime(seconds(value, f"`linger` of {what}") or 0.0) if field == "linger" else value
    return limits


def _humantime(limit: float) -> str:
    return f"{round(limit * 1e6)}us"


def _instances(what: str, replicas: Any) -> Any:
    if isinstance(replicas, int) and not isinstance(replicas, bool):
        least = most = replicas
    else:
        try:
            least, most = replicas
        except (TypeError, ValueError):
            raise InvalidError(f"{what}: replicas={replicas!r}; use a number", fate="not-sent") from None
    if least != most:
        raise InvalidError(f"{what}: replicas={replicas!r}: services do not grow and shrink by themselves yet; use one number", fate="not-sent")
    if not 1 <= most <= 1024:
        raise InvalidError(f"{what}: replicas={replicas!r}; 1 to 1024", fate="not-sent")
    return most


def error_policy(given: Any) -> Any:
    """An error policy as the engine writes it."""
    if isinstance(given, str):
        if given not in ("fail", "error-output"):
            raise InvalidError(
                f"on_error={given!r} is not known; use 'fail', 'error-output', or a dict of default values by column", fate="not-sent"
            )
        return given
    return {"default": dict(given)}


def _pickled(what: str, service: Service) -> str:
    try:
        pickled = cloudpickle.dumps(service)
    except Exception as e:
        raise InvalidError(
            f"{what} cannot be pickled: {type(e).__name__}: {e}; what cannot travel to another process (locks, connections, models) is made in "
            "`open`",
            fate="not-sent",
        ) from e
    if len(pickled) > _MOST_PICKLED:
        raise InvalidError(
            f"{what} is {len(pickled) >> 20} MiB when pickled, and at most {_MOST_PICKLED >> 20} MiB travel with it; load what is large in `open`",
            fate="not-sent",
        )
    return base64.b64encode(pickled).decode()


_INSTALLED = {os.path.realpath(p) for p in [*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()]}
_PREFIXES = tuple(os.path.realpath(p) + os.sep for p in {sys.prefix, sys.base_prefix})


def _is_own(path: str) -> bool:
    """Whether a folder or file belongs to no installation."""
    real = os.path.realpath(path)
    return real not in _INSTALLED and not real.startswith((*_PREFIXES, os.path.dirname(__file__) + os.sep))


def _search_path() -> list[str]:
    """Where the program's own modules are: what is on ``sys.path`` and belongs to no installation."""
    return [os.path.abspath(path) for path in sys.path if _is_own(path)]


#: Instances of another build of this package are not taken over.
_BUILD = "{0.st_size}-{0.st_mtime_ns}".format(os.stat(_pelton.__file__))  # noqa: UP032
_checked: set[str] = set()


def _check_interpreter(what: str, python: str) -> None:
    if python == sys.executable or python in _checked:
        return
    command = [python, "-c", "import pelton._pelton as p; print(p.__version__)"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except OSError as e:
        raise InvalidError(f"{what}: python={python!r} does not run: {e}", fate="not-sent") from None
    if asked.returncode != 0:
        said = asked.stderr.strip().rpartition("\n")[2]
        raise InvalidError(
            f"{what}: {python} cannot load pelton ({said}); install this package there: {python} -m pip install pelton", fate="not-sent"
        )
    if asked.stdout.strip() != _pelton.__version__:
        raise InvalidError(
            f"{what}: {python} has pelton {asked.stdout.strip()}, and this program {_pelton.__version__}; install the same there", fate="not-sent"
        )
    _checked.add(python)


class Execution:
    """A job that runs, with what belongs to it in this process."""

    _all: weakref.WeakSet[Execution] = weakref.WeakSet()

    def __init__(self, building: Building, name: str, state: str | None, settings: dict[str, Any], *, shows: bool = False) -> None:
        # Where nothing is kept to go on from, logs are all that anybody may want of it.
        logs = os.environ.get("PELTON_LOGS")
        if state is None and logs:
            Path(logs).mkdir(parents=True, exist_ok=True)
            state = tempfile.mkdtemp(prefix=f"{name}-", dir=logs)
        self._temporary = tempfile.mkdtemp(prefix="pelton-") if state is None else None
        self.state = Path(state or self._temporary or "")
        self._watch: Watch | None = None
        try:
            self.running = building.plan.start(name, json.dumps(self.wishes(str(self.state), **settings)))
        except BaseException:
            self._tidy()
            raise
        Execution._all.add(self)
        self._watch = Watch(self.running, self.state / "logs", shows)
        for feed, rows in building.feeds:
            threading.Thread(target=_pump, args=(feed, rows), name="pelton-feed", daemon=True).start()

    @staticmethod
    def wishes(state: str, **settings: Any) -> dict[str, Any]:
        """How a job runs, as the engine writes it."""
        unset = {"fresh": False, "checkpoint_interval": 5.0, "stop_grace": None, "restarts": None, "threads": None, "edge_bytes": None}
        return {"state": state, **unset, "pending_rows": _PENDING_ROWS, **settings}

    def batches(self, timeout: float | None) -> Iterator[pa.RecordBatch]:
        """The rows, as they come. Left before the end, the job is ended."""
        given, end = 0, None
        try:
            while (batch := self.running.next_batch(timeout)) is not None:
                given += batch.num_rows
                yield batch
            end = f"finished | rows {given}"
        except PeltonError as e:
            self._explain(e)
            raise
        finally:
            self.close(end)

    def wait(self) -> dict[str, Any]:
        """Waits for the end. Interrupted, it stops the job with a checkpoint; a second time, at once."""
        end = None
        try:
            try:
                told: dict[str, Any] = json.loads(self.running.wait() or "")
            except KeyboardInterrupt:
                self.running.stop()
                self.running.wait()
                raise
            end = f"{told['end']} | rows {told['nodes']['rows']['rows_in']} | {told['seconds']:.1f} s"
            return told
        except PeltonError as e:
            self._explain(e)
            raise
        finally:
            self.close(end)

    def close(self, end: str | None = None) -> None:
        """Ends what still runs; returns when nothing does. ``end``: what there is to say of it."""
        self.running.cancel()
        if self._watch is not None:
            self._watch.close(end)
        self._tidy()

    def _tidy(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _explain(self, error: PeltonError) -> None:
        """Adds the ends of the instances' logs to an error that speaks of them: they may be gone in a moment."""
        for log in sorted((self.state / "logs").glob("*")):
            if log.name not in str(error):
                continue
            with contextlib.suppress(OSError):
                lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
                kept = "" if self._temporary is None else " (PELTON_LOGS=FOLDER in the environment keeps it)"
                note = "\n".join([f"the end of {log.name}{kept}:", *lines])
                if hasattr(error, "add_note"):
                    error.add_note(note)


@atexit.register
def _end_all() -> None:
    for execution in list(Execution._all):
        execution.close()


def _pump(feed: _pelton.Feed, rows: Iterator[pa.RecordBatch]) -> None:
    """Puts an iterator's rows into the engine."""
    try:
        for batch in rows:
            if not feed.put(batch):
                break
        feed.end()
    except BaseException as e:
        feed.fail(*describe(e))
    finally:
        feed.close()
        close = getattr(rows, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):
                close()


def rows_of(node: Node, timeout: float | None = None, *, learns: bool = False, shows: bool = False) -> Iterator[pa.RecordBatch]:
    """Runs a pipeline from when the first row is asked for, and gives its rows as they come. What failed of rows whose errors nobody reads is warned of."""
    building = Building(learns=learns)
    building.plan.gather("rows", building.node(node))
    building.finish()
    settings = {"restarts": 0, "edge_bytes": _EDGE_BYTES}
    execution = Execution(building, f"python-{os.getpid()}-{next(_numbers)}", None, settings, shows=shows)
    yield from execution.batches(timeout)


def _count() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


_numbers = _count()
