"""Whether two services are the same, in programs that run one after another.

A service that is pickled by value (its class stands in a script or a notebook) gives other bytes each time, though nothing changed. So instances
that an earlier run left are recognised by this instead: a digest of what the service is made of, as code and as values.
"""

from __future__ import annotations

import copyreg
import dis
import hashlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

#: What a class has beside what somebody wrote there.
_MADE = {
    "__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl",
    "__dataclass_fields__", "__dataclass_params__", "__annotations_cache__",
}  # fmt: skip
#: Of a code object, what says how it runs; not where it stands.
_CODE = (
    "co_name", "co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags", "co_code", "co_names", "co_varnames", "co_freevars",
    "co_cellvars", "co_consts",
)  # fmt: skip


def identity(service: Any, *facts: Any, is_own: Callable[[str], bool]) -> str | None:
    """A digest of a service, and of what else its instances are made of. None: it holds something that cannot be looked into.

    What is imported counts by its name, and, of the program's own modules (``is_own`` of their file), by the text of the file that it stands in.
    What stands in a script or notebook counts by its code, by the values of its attributes, and by the globals that it uses; not by its
    comments, nor by the lines that it stands on.
    """
    feed = _Feed(is_own)
    try:
        feed.put([service, *facts])
    except Exception:
        return None
    return feed.digest.hexdigest()


class _Feed:
    def __init__(self, is_own: Callable[[str], bool]) -> None:
        self.digest = hashlib.sha256()
        self._is_own = is_own
        self._seen: dict[int, int] = {}
        #: So that nothing that was seen is freed, and its id given to something else.
        self._kept: list[Any] = []

    def put(self, value: Any) -> None:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)) and type(value).__module__ == "builtins":
            self._word(type(value).__name__, value if isinstance(value, bytes) else repr(value).encode())
            return
        if id(value) in self._seen:
            self._word("seen", str(self._seen[id(value)]).encode())
            return
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        if type(value) in (set, frozenset):
            parts: Iterator[Any] = iter(sorted(map(self._alone, value)))
        else:
            parts = self._parts(value)
        self._word("(", type(value).__qualname__.encode())
        for part in parts:
            self.put(part)
        self._word(")", b"")

    def _word(self, kind: str, word: bytes) -> None:
        self.digest.update(f"{kind} {len(word)} ".encode())
        self.digest.update(word)

    def _alone(self, value: Any) -> bytes:
        other = _Feed(self._is_own)
        other.put(value)
        return other.digest.digest()

    def _parts(self, value: Any) -> Iterator[Any]:
        if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
            yield from value
        elif type(value) in (dict, types.MappingProxyType):
            for key, item in value.items():
                yield key
                yield item
        elif isinstance(value, types.ModuleType):
            yield from self._named(value.__name__, "", value)
        elif isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)) and (module := _importable(value)) is not None:
            yield from self._named(module.__name__, value.__qualname__, module)
        elif isinstance(value, type):
            yield value.__qualname__
            yield value.__bases__
            for name in sorted(set(vars(value)) - _MADE):
                yield name
                yield vars(value)[name]
        elif isinstance(value, types.FunctionType):
            yield from (value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__)
            for cell in value.__closure__ or ():
                yield cell.cell_contents
            for name in sorted(_globals_of(value.__code__)):
                if name in value.__globals__:
                    yield name
                    yield value.__globals__[name]
        elif isinstance(value, types.CodeType):
            for part in _CODE:
                yield getattr(value, part)
        elif isinstance(value, types.MethodType):
            yield from (value.__func__, value.__self__)
        elif isinstance(value, (staticmethod, classmethod)):
            yield value.__func__
        elif isinstance(value, property):
            yield from (value.fget, value.fset, value.fdel)
        else:
            reduce = copyreg.dispatch_table.get(type(value))
            reduced: Any = reduce(value) if reduce is not None else value.__reduce_ex__(4)
            yield from reduced if isinstance(reduced, str) else (list(part) if isinstance(part, Iterator) else part for part in reduced)

    def _named(self, module: str, name: str, found: Any) -> Iterator[Any]:
        yield module
        yield name
        file = getattr(found, "__file__", None)
        if file and os.path.isfile(file) and self._is_own(file):
            with open(file, "rb") as text:
                yield text.read()


def _importable(value: Any) -> Any:
    """The module where others find a class or function by its name; None where it is pickled by value."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None or module.__name__ == "__main__":
        return None
    found: Any = module
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return module if found is value else None


def _globals_of(code: types.CodeType) -> set[str]:
    names = {str(at.argval) for at in dis.get_instructions(code) if at.opname.endswith("_GLOBAL") or at.opname == "LOAD_NAME"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals_of(constant)
    return names
