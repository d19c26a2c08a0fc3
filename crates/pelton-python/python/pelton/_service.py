"""Services: what is loaded once, in processes of its own, and called for rows."""

from __future__ import annotations

import copy
import datetime
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, overload

from ._batches import Format, wanted
from ._errors import InvalidError
from ._expressions import Expr, of
from ._pelton import Context
from ._types import SchemaLike, schema

Duration = float | str | datetime.timedelta
C = TypeVar("C", bound=Callable[..., Any])
S = TypeVar("S", bound="Service")


class Method(Generic[C]):
    """A method that can be called from a pipeline. Made by :func:`method`."""

    def __init__(
        self,
        function: C,
        *,
        input: SchemaLike | None,
        output: SchemaLike | None,
        format: Format | None,
        max_rows: int | None,
        linger: Duration | None,
        concurrency: int | None,
        bound: bool = True,
    ) -> None:
        self.function = function
        self.name = getattr(function, "__name__", "call")
        self.__doc__ = function.__doc__
        what = f"method `{self.name}`"
        self.input = None if input is None else schema(input, f"`input` of {what}")
        self.output = None if output is None else schema(output, f"`output` of {what}")
        self.format: Format = wanted(function, format, what, bound)
        self.max_rows = max_rows
        self.linger = linger
        self.streams = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        if is_async and concurrency is None:
            raise InvalidError(
                f"{what} is asynchronous: say how many calls of it may run at a time, as in @pn.method(concurrency=16)",
                fate="not-sent",
            )
        if concurrency is not None and not is_async:
            raise InvalidError(
                f"{what} has concurrency={concurrency}, and is an ordinary function, which runs one batch after another; "
                "make it `async def`, or give the service more replicas",
                fate="not-sent",
            )
        if concurrency is not None and concurrency < 1:
            raise InvalidError(f"{what} has concurrency={concurrency}; at least 1", fate="not-sent")
        self.concurrency = concurrency
        (needed, most), wants_rows = _positional(function), 2 if bound else 1
        if most < wants_rows:
            takes = "self, batch" if bound else "batch"
            raise InvalidError(f"{what} takes no rows; write `def {self.name}({takes})`", fate="not-sent")
        self.wants_call = needed > wants_rows

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Method[C]: ...
    @overload
    def __get__(self, instance: Any, owner: type) -> BoundMethod: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else BoundMethod(instance, self)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.function(*arguments, **keywords)

    def __repr__(self) -> str:
        return f"<method {self.name}>"


def _positional(function: Callable[..., Any]) -> tuple[int, float]:
    """How many arguments a function must be given, and how many it may be."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0, math.inf
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return sum(p.default is p.empty for p in places), math.inf if any_number else len(places)


class BoundMethod:
    """A method of one service: what :meth:`Stream.call` takes.

    Called with expressions (``embedder.embed(pn.col("text"))``), it is an expression itself. Called with rows, it runs here, without any service.
    """

    def __init__(self, service: Service, method: Method[Any]) -> None:
        self.service = service
        self.method = method

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if any(isinstance(argument, Expr) for argument in arguments):
            return _called(self.service, self.method, arguments, keywords)
        return self.method.function(self.service, *arguments, **keywords)

    def __repr__(self) -> str:
        return f"<method {self.method.name} of {self.service!r}>"


@overload
def method(function: C, /) -> Method[C]: ...
@overload
def method(
    *,
    input: SchemaLike | None = None,
    output: SchemaLike | None = None,
    format: Format | None = None,
    max_rows: int | None = None,
    linger: Duration | None = None,
    concurrency: int | None = None,
) -> Callable[[C], Method[C]]: ...
def method(
    function: Any = None,
    /,
    *,
    input: SchemaLike | None = None,
    output: SchemaLike | None = None,
    format: Format | None = None,
    max_rows: int | None = None,
    linger: Duration | None = None,
    concurrency: int | None = None,
) -> Any:
    """Makes a method of a :class:`Service` callable from pipelines.

    The method gets a batch of rows and returns one row for each, in the same order. **An instance runs its batches strictly one after
    another**: no method needs a lock. Two kinds of methods differ:

    * ``async def``: up to ``concurrency`` batches run at a time, on one event loop. The bound must be said.
    * a generator (``yield``, also in ``async def``): gets one row, and yields any number of batches as its answer. While its caller takes
      none of them, it waits at its ``yield``.

    A method with a second parameter is handed the :class:`Call`, which tells whether it was cancelled, and takes rows that failed.

    :param input: the columns that it takes. Left out: those it is called with.
    :param output: the columns that it gives, which are added to the row: a ``pyarrow.Schema``, or a dict of types.
    :param format: what it gets: ``"arrow"`` (a ``pyarrow.RecordBatch`` that shares the engine's memory), ``"numpy"`` (a dict of arrays),
        ``"pandas"``, ``"torch"`` (a dict of tensors) or ``"rows"`` (a list of dicts). Left out: what its parameter is annotated with, or Arrow.
        What it returns may be any of them.
    :param max_rows: the most rows in a batch (32).
    :param linger: how long an idle instance waits for a batch to fill (2 ms).
    """
    if function is not None and not callable(function):
        raise InvalidError("@pn.method takes keyword arguments only, as in @pn.method(max_rows=32)", fate="not-sent")
    settings: dict[str, Any] = dict(
        input=input, output=output, format=format, max_rows=max_rows, linger=linger, concurrency=concurrency
    )
    def make(function: Any) -> Method[Any]:
        if not inspect.isfunction(function):
            raise InvalidError(f"@pn.method marks a function of a class (`def`), not {function!r}", fate="not-sent")
        return Method(function, **settings)

    return make if function is None else make(function)


@dataclass(frozen=True)
class Settings:
    """What is set about a service; see :class:`Service`."""

    name: str | None = None
    replicas: int | tuple[int, int] = 1
    cpus: float = 1.0
    device: str = "cpu"
    python: str | None = None
    timeout: Duration | None = None
    attempt_timeout: Duration | None = None
    on_error: str | Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


class Service:
    """Something that is loaded once in processes of its own, and called for rows: a model, most often.

    Subclass it, load in :meth:`open`, and give it methods::

        class Embedder(pn.Service):
            def open(self, ctx):
                self.model = load("all-minilm-l6-v2", ctx.device)

            @pn.method(max_rows=32, output={"embedding": pa.list_(pa.float32(), 384)})
            def embed(self, batch: pa.RecordBatch):
                return {"embedding": self.model.encode(batch["text"].to_pylist())}

    An object of the class describes the service; it is pickled (by cloudpickle), with its attributes, and each instance of the service is
    a Python process of its own with a copy of it, on which ``open`` is called. **An instance runs its batches strictly one after another**;
    see :func:`method` for the exceptions. An instance that dies is started again, and what it held runs elsewhere.

    :param name: what it is called in plans, logs and ``pelton status``. Left out: the class's name.
    :param replicas: how many instances.
    :param cpus: the cores of one instance; numeric libraries are told by their environment variables.
    :param device: handed to ``open`` as ``ctx.device``.
    :param python: the interpreter of the instances. Left out: the one that runs now. It must have this package, and the service's modules.
    :param timeout: the overall deadline of a row, where a call sets none.
    :param attempt_timeout: how long one try at a row may take; then it is tried elsewhere.
    :param on_error: what calls that say nothing do with a row that failed (see :meth:`Stream.call`).
    :param settings: any other setting of a service's declaration, by its name there: ``{"retry": {"attempts": 2}, "lease": "10s"}``.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        replicas: int | tuple[int, int] = 1,
        cpus: float = 1.0,
        device: str = "cpu",
        python: str | None = None,
        timeout: Duration | None = None,
        attempt_timeout: Duration | None = None,
        on_error: str | Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._pelton_settings = Settings(name, replicas, cpus, device, python, timeout, attempt_timeout, on_error, dict(settings or {}))

    #: What stands in for it in tests (see :func:`pelton.testing.scripted`).
    _script: dict[str, Any] | None = None

    def options(self: S, **settings: Any) -> S:
        """The same service with other settings, those of ``Service.__init__``: ``Embedder("small").options(replicas=2)``."""
        other = copy.copy(self)
        try:
            other._pelton_settings = replace(self._settings, **settings)
        except TypeError as e:
            known = ", ".join(Settings.__dataclass_fields__)
            raise InvalidError(f"options: {str(e).rpartition('() ')[2]}; a service has the settings {known}", fate="not-sent") from None
        return other

    @property
    def _settings(self) -> Settings:
        # A class may have an __init__ that knows nothing of them.
        return getattr(self, "_pelton_settings", None) or Settings()

    def open(self, ctx: Context) -> None:
        """Loads and warms up, in the instance. It gets no request before this returns; that may take minutes."""

    def declaration(self) -> str:
        """The text of a declaration's TOML file, for hosts that are no program in Python: a job on Flink, say. It names this interpreter, and
        has the service in it, as it is now; each method has to declare its ``input``."""
        from ._run import declaration

        return declaration(self)

    def close(self) -> None:
        """Called after the last request, when the instance leaves in good order."""

    def _methods(self) -> dict[str, Method[Any]]:
        found: dict[str, Method[Any]] = {}
        for cls in reversed(type(self).__mro__):
            found.update({name: m for name, m in vars(cls).items() if isinstance(m, Method)})
        return found

    def _service_name(self) -> str:
        return self._settings.name or service_name(type(self).__name__)

    def __repr__(self) -> str:
        return f"<service {self._service_name()}>"

    def __copy__(self: S) -> S:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_pelton_settings", None)
        return state


def _called(service: Service, method: Method[Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Expr:
    """A call within an expression."""
    if keywords:
        raise InvalidError(f"method `{method.name}` in an expression takes its columns in their order, without names", fate="not-sent")
    trees = [of(argument)._tree for argument in arguments]
    return Expr({"op": "call", "service": service, "method": method, "arguments": trees})


def service_name(name: str) -> str:
    """``TextEmbedder`` as a service is called: ``text-embedder``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    return re.sub(r"[^a-z0-9_-]+", "-", words).strip("-")[:32] or "service"


class FunctionService(Service):
    """A plain function as a service. Made by :func:`service`."""

    def __init__(self, function: Callable[..., Any], method: Method[Any], **settings: Any) -> None:
        super().__init__(**settings)
        self._function = function
        self._method = method

    def _methods(self) -> dict[str, Method[Any]]:
        return {self._method.name: self._method}

    def _service_name(self) -> str:
        return self._settings.name or service_name(self._method.name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """With expressions, an expression; with rows, runs the function here, without any service."""
        if any(isinstance(argument, Expr) for argument in arguments):
            return _called(self, self._method, arguments, keywords)
        return self._function(*arguments, **keywords)


@overload
def service(function: Callable[..., Any], /) -> FunctionService: ...
@overload
def service(
    *,
    input: SchemaLike | None = None,
    output: SchemaLike | None = None,
    format: Format | None = None,
    max_rows: int | None = None,
    linger: Duration | None = None,
    concurrency: int | None = None,
    **settings: Any,
) -> Callable[[Callable[..., Any]], FunctionService]: ...
def service(
    function: Callable[..., Any] | None = None,
    /,
    *,
    input: SchemaLike | None = None,
    output: SchemaLike | None = None,
    format: Format | None = None,
    max_rows: int | None = None,
    linger: Duration | None = None,
    concurrency: int | None = None,
    **settings: Any,
) -> Any:
    """Makes a service of a plain function: ``@pn.service(output={"loud": str}, replicas=2)``.

    The function is the service's one method; see :func:`method` for what it gets and gives, and :class:`Service` for ``settings``. It
    runs in processes of its own, **one batch after another** in each, and can be handed to :meth:`Stream.call` as it is.
    """

    def make(function: Callable[..., Any]) -> FunctionService:
        if isinstance(function, type) or not callable(function):
            raise InvalidError(f"@pn.service marks a function, not {function!r}; a class is a service that subclasses pn.Service", fate="not-sent")
        method = Method(
            function,
            input=input,
            output=output,
            format=format,
            max_rows=max_rows,
            linger=linger,
            concurrency=concurrency,
            bound=False,
        )
        return FunctionService(function, method, **settings)

    return make if function is None else make(function)
