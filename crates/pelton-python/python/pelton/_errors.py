"""Errors of the engine as exceptions, and exceptions of user code as errors of the engine."""

from __future__ import annotations

import traceback
from typing import Any, Literal

Fate = Literal["not-sent", "refused", "unknown", "executed"]

#: Longer descriptions of an exception are cut in the middle.
_LONGEST = 16 << 10


class PeltonError(Exception):
    """Whatever goes wrong in a job.

    ``kind`` is the stable name of what went wrong, as it stands in error rows; ``fate`` says what the far side may have done with the
    request; ``may_retry`` whether the same may go well another time.
    """

    kind = "internal"

    def __init__(self, message: str, *, fate: Fate = "unknown", may_retry: bool = False) -> None:
        super().__init__(message)
        self.fate: Fate = fate
        self.may_retry = may_retry

    def __reduce__(self) -> Any:
        return _remake, (type(self), str(self), self.fate, self.may_retry)


def _remake(cls: type[PeltonError], message: str, fate: Fate, may_retry: bool) -> PeltonError:
    return cls(message, fate=fate, may_retry=may_retry)


class ConnectError(PeltonError, ConnectionError):
    """No connection could be made."""

    kind = "connect"


class ResetError(PeltonError, ConnectionError):
    """A connection broke."""

    kind = "reset"


class OverloadError(PeltonError):
    """The far side holds as much as it will."""

    kind = "overload"


class NoProgressError(PeltonError):
    """Work is held, and nothing moves."""

    kind = "no-progress"


class DeadlineError(PeltonError, TimeoutError):
    """The deadline passed."""

    kind = "deadline"


class CancelledError(PeltonError):
    """Somebody took the request, or the whole job, back."""

    kind = "cancelled"


class InvalidError(PeltonError, ValueError):
    """A mistake in the pipeline or in a service: bad arguments, schema, name, setting."""

    kind = "invalid"


class UserCodeError(PeltonError, RuntimeError):
    """A method or function of yours raised, or gave what it must not give. The message has its traceback."""

    kind = "user"


class LimitError(PeltonError):
    """A limit was hit; the message names it."""

    kind = "limit"


class ProtocolError(PeltonError):
    """The far side broke the protocol, or speaks another version."""

    kind = "protocol"


class DeniedError(PeltonError, PermissionError):
    """Not authenticated, or another process has taken over."""

    kind = "denied"


class StorageError(PeltonError, OSError):
    """Files and other storage."""

    kind = "storage"


class InternalError(PeltonError):
    """A mistake of Pelton's own."""

    kind = "internal"


class OutOfMemoryError(PeltonError, MemoryError):
    """A method ran out of memory, with a batch of one row."""

    kind = "out-of-memory"


class TransientError(Exception):
    """Raise it in a method where the same rows may pass another time: the batch is tried again, elsewhere."""


#: The exception of each kind of error.
BY_KIND: dict[str, type[PeltonError]] = {
    cls.kind: cls
    for cls in (
        ConnectError,
        ResetError,
        OverloadError,
        NoProgressError,
        DeadlineError,
        CancelledError,
        InvalidError,
        UserCodeError,
        LimitError,
        ProtocolError,
        DeniedError,
        StorageError,
        InternalError,
        OutOfMemoryError,
    )
}


def exception(kind: str, fate: Fate, may_retry: bool, message: str) -> PeltonError:
    """The exception for an error of the engine."""
    return BY_KIND[kind](message, fate=fate, may_retry=may_retry)


def describe(error: BaseException) -> tuple[str, str]:
    """What an exception of user code means for its rows, and the text that tells of it: its own words, and where it was raised."""
    if isinstance(error, PeltonError) and error.kind in ("invalid", "user", "cancelled", "out-of-memory"):
        return error.kind, str(error)
    what = "user"
    if isinstance(error, TransientError):
        what = "transient"
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        what = "out-of-memory"
    return what, _told(error)


def _told(error: BaseException) -> str:
    lines = traceback.format_exception(type(error), error, _outside(error.__traceback__))
    first = "".join(traceback.format_exception_only(type(error), error)).strip()
    text = f"{first}\n{''.join(lines).rstrip()}"
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]}\n[...]\n{text[-half:]}"
    return text


def _outside(frames: Any) -> Any:
    """The traceback from where this package's own frames end."""
    here = __file__.rpartition("/")[0]
    at = frames
    while at is not None and at.tb_frame.f_code.co_filename.startswith(here + "/"):
        at = at.tb_next
    return at if at is not None else frames
