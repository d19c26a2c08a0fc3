"""Calls of services within expressions: they become steps of the pipeline, and the expression takes what they gave from a column."""

from __future__ import annotations

from typing import Any

from ._errors import InvalidError
from ._expressions import Tree
from ._service import Method, Service
from ._stream import Call, Node, Select, _manner


class Rewriting:
    """Columns for the calls of some expressions, added behind a node."""

    def __init__(self, input: Node) -> None:
        self.node = input
        #: What the input's columns are called now, and the columns of calls that were made already.
        self._names = {name: name for name in input.columns.names}
        self._made: list[tuple[Tree, str]] = []

    def kept(self) -> list[tuple[str, Tree]]:
        """The input's columns, as they were."""
        return [(name, _column(now)) for name, now in self._names.items()]

    def rewritten(self, tree: Tree) -> Tree:
        """The same expression without calls, for the node as it is now."""
        if tree["op"] == "call":
            return _column(self._call(tree))
        if tree["op"] == "column":
            name: str = tree["name"]
            return _column(self._names.get(name, name))
        return {key: self.rewritten(part) if key in ("of", "left", "right") else part for key, part in tree.items()}

    def _call(self, tree: Tree) -> str:
        """Adds the step for a call, unless the same was added before. Returns the column with what it gives."""
        for known, column in self._made:
            if known == tree:
                return column
        service: Service = tree["service"]
        method: Method[Any] = tree["method"]
        given = method.output
        if given is None or len(given) != 1 or method.streams:
            what = "streams" if method.streams else "does not give exactly one column" if given is not None else "does not declare its `output`"
            raise InvalidError(f"method `{method.name}` {what}, so it cannot stand in an expression; use stream.call", fate="not-sent")
        # Those within first: they may give the columns other names.
        for argument in tree["arguments"]:
            self.rewritten(argument)
        self._make_room(given.names[0])
        arguments = [self.rewritten(argument) for argument in tree["arguments"]]
        column = f"{method.name} {len(self._made)}"
        columns = self.node.columns.names
        plain = [a["name"] if a["op"] == "column" else f"argument {at} of {column}" for at, a in enumerate(arguments)]
        computed = [(name, a) for name, a in zip(plain, arguments) if a["op"] != "column"]
        if computed:
            self.node = Select(self.node, [*((name, _column(name)) for name in columns), *computed])
        self.node = Call(self.node, service, method, plain, _manner())
        # Arguments that were computed are gone again, and the answer has a name that no other has.
        self.node = Select(self.node, [*((name, _column(name)) for name in columns), (column, _column(given.names[0]))])
        self._made.append((tree, column))
        return column

    def _make_room(self, name: str) -> None:
        """Sees to it that no column has the name that a call gives to its own."""
        if name not in self.node.columns.names:
            return
        other = f"kept {name}"
        self.node = Select(self.node, [(other if n == name else n, _column(n)) for n in self.node.columns.names])
        self._names = {was: other if now == name else now for was, now in self._names.items()}


def calls(tree: Tree) -> bool:
    """Whether there are any in an expression."""
    return tree["op"] == "call" or any(calls(tree[part]) for part in ("of", "left", "right") if part in tree)


def _column(name: str) -> Tree:
    return {"op": "column", "name": name}
