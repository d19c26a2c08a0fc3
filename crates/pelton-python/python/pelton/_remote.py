"""Services that are servers of others: OpenAI-compatible ones, and those of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from ._errors import InvalidError
from ._service import Duration, Method, Service
from ._types import SchemaLike

Protocol = Literal["openai", "oip-http", "oip-grpc"]


class RemoteMethod(Method[Any]):
    """A method that a server of others runs. Made by :func:`remote_method`."""

    def __init__(self, words: dict[str, Any], *, input: SchemaLike, output: SchemaLike, streams: bool) -> None:
        super().__init__(_elsewhere, input=input, output=output, format="arrow", max_rows=None, linger=None, concurrency=None)
        self.streams = streams
        #: How it is put into the protocol's words, as a declaration writes it.
        self.words = words


def _elsewhere(service: Any, batch: pa.RecordBatch) -> Any:
    raise InvalidError("this method runs on a server; call it from a pipeline", fate="not-sent")


def remote_method(
    *,
    input: SchemaLike,
    output: SchemaLike,
    streams: bool = False,
    route: Literal["embeddings", "chat"] | None = None,
    system: str | None = None,
    extra: Mapping[str, Any] | None = None,
    model: str | None = None,
    tensors: Mapping[str, str] | None = None,
) -> RemoteMethod:
    """Declares a method of a :class:`RemoteService`.

    :param input: the columns that it takes. OpenAI: one of text.
    :param output: the columns that it gives. OpenAI: one of text is a chat's answer, one of vectors an embedding.
    :param streams: whether the answer comes in parts, as rows of their own (OpenAI chat).
    :param route: OpenAI: which part of the interface, where the columns do not say it.
    :param system: OpenAI chat: what goes before each prompt.
    :param extra: OpenAI: more fields of the request, such as ``{"temperature": 0}``; else parameters of the request.
    :param model: Open Inference Protocol: another model for this method.
    :param tensors: Open Inference Protocol: tensors that are not called as the columns are, by column.
    """
    words = {"route": route, "system": system, "extra": dict(extra or {}), "model": model, "tensors": dict(tensors or {})}
    return RemoteMethod({name: word for name, word in words.items() if word}, input=input, output=output, streams=streams)


class RemoteService(Service):
    """Servers of others as a service: the job sends them what it would send to instances. Subclass it, and declare its methods::

        class Models(pn.RemoteService):
            embed = pn.remote_method(input={"text": str}, output={"embedding": pn.embedding(384)})
            answer = pn.remote_method(input={"prompt": str}, output={"answer": str}, extra={"max_tokens": 64})

        models = Models("openai", "http://10.0.0.7:8000", model="all-minilm", api_key_env="MODELS_KEY", attempt_timeout="20s")
        docs.call(models.embed, columns=["text"], on_error="error-output")

    How many calls are in flight follows what the servers bear; what they refuse or break off is tried again, within the retry budget.

    :param protocol: ``"openai"``, ``"oip-http"`` or ``"oip-grpc"`` (the Open Inference Protocol, version 2).
    :param urls: servers that give the same answers: ``"http://HOST:PORT"``, ``"https://HOST"``.
    :param model: what the servers call the model.
    :param version: the model's version (``oip-*``).
    :param api_key_env: the environment variable that holds the key; never the key itself.
    :param name: what it is called in plans and ``pelton status``. Left out: the class's name.
    :param timeout: the overall deadline of a row, where a call sets none.
    :param attempt_timeout: how long one try at a row may take.
    :param on_error: what calls that say nothing do with a row that failed (see :meth:`Stream.call`).
    :param settings: any other setting of a service's declaration: ``{"batch": {"rows": 16}, "retry": {"attempts": 5}}``.
    """

    def __init__(
        self,
        protocol: Protocol,
        urls: str | Sequence[str],
        *,
        model: str,
        version: str | None = None,
        api_key_env: str | None = None,
        name: str | None = None,
        timeout: Duration | None = None,
        attempt_timeout: Duration | None = None,
        on_error: str | Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name=name, timeout=timeout, attempt_timeout=attempt_timeout, on_error=on_error, settings=settings)
        server = {"protocol": protocol, "urls": [urls] if isinstance(urls, str) else list(urls), "model": model}
        more = {"version": version, "api_key_env": api_key_env}
        self._server: dict[str, Any] = server | {field: value for field, value in more.items() if value is not None}

    def _declared(self) -> dict[str, Any]:
        """What a declaration says of the servers."""
        methods: dict[str, Any] = {}
        for name, method in self._methods().items():
            if not isinstance(method, RemoteMethod):
                raise InvalidError(f"method `{name}` of a RemoteService runs on a server: declare it with pn.remote_method", fate="not-sent")
            if method.words:
                methods[name] = method.words
        return {"kind": "remote", "remote": {**self._server, **({"methods": methods} if methods else {})}}
