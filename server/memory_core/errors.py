"""Typed errors. Each says what was wrong, what is allowed and what to do."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import ClassVar

ECHO_LIMIT = 64


def echo(value: object) -> str:
    """Quote `value` for an error text: printable, at most 64 characters of it."""
    text = value if isinstance(value, str) else repr(value)
    short = text[:ECHO_LIMIT]
    return ascii(short) + ("…" if len(text) > ECHO_LIMIT else "")


class MemoryServiceError(Exception):
    """Base of all errors that callers see. `code` is stable, for programs. The message says what was wrong and what is
    allowed; `hint` says what to do next; `retry_after` is in seconds.
    """

    code: ClassVar[str] = "internal"

    def __init_subclass__(cls, code: str | None = None) -> None:
        cls.code = code or cls.code

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after = retry_after

    def details(self) -> dict[str, str | float]:
        """Return the error for programs, without empty fields."""
        fields = {"code": self.code, "message": self.message, "hint": self.hint, "retry_after": self.retry_after}
        return {name: value for name, value in fields.items() if value not in (None, "")}

    def text(self) -> str:
        """Return the error in one line for people and models."""
        return f"{self.code}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class InvalidArgument(MemoryServiceError, code="invalid_argument"):
    """An argument is of the wrong type, out of range, hostile or unknown."""


class NotFound(MemoryServiceError, code="not_found"):
    """The record does not exist or the caller may not read it; the two look the same."""


class Forbidden(MemoryServiceError, code="forbidden"):
    """The caller may read the record but not do this to it."""


class Unauthenticated(MemoryServiceError, code="unauthenticated"):
    """The token is unknown, expired, revoked or another agent's; all look the same."""


class IssuerUnavailable(MemoryServiceError, code="issuer_unavailable"):
    """The keys that verify tokens are not available, so no token is accepted."""


class RateLimited(MemoryServiceError, code="rate_limited"):
    """The agent exceeds its rate limit."""


class Overloaded(MemoryServiceError, code="overloaded"):
    """The server is overloaded and did nothing. `retry_after` says when to try again."""


class Conflict(MemoryServiceError, code="conflict"):
    """The record is not in the state that the caller expected."""


class LeaseLost(Conflict, code="lease_lost"):
    """The lease token is not the current one: the agent no longer holds the task."""


class QuotaExceeded(MemoryServiceError, code="quota_exceeded"):
    """The agent or the namespace has reached its quota."""


class Tampered(MemoryServiceError, code="tampered"):
    """The stored data was changed outside this server, or its key was destroyed."""


class ConfirmationNeeded(MemoryServiceError, code="confirmation_needed"):
    """The operation is large or irreversible and needs confirmation."""


class NotSupported(MemoryServiceError, code="not_supported"):
    """The deployment lacks something that this request needs, such as a master key."""


class KeyMissing(NotSupported, code="key_missing"):
    """This process does not have the key that this needs."""


class StoreUnavailable(MemoryServiceError, code="store_unavailable"):
    """Redis does not answer, is loading, or refuses. Nothing was changed."""


class StoreRefused(StoreUnavailable):
    """Redis refuses: it is full, read-only, or does not know this user. A retry does not help."""


class OutcomeUnknown(MemoryServiceError, code="outcome_unknown"):
    """The connection broke after a write was sent. The write is applied in full or not at all."""


class EmbeddingUnavailable(MemoryServiceError, code="embedding_unavailable"):
    """No sidecar returned a vector in time."""


class BulkUnavailable(MemoryServiceError, code="bulk_unavailable"):
    """No bulk engine answered in time, or it refused."""


class ModelMismatch(MemoryServiceError, code="model_mismatch"):
    """The index is for another embedding model or dimension."""


class UnsafeStart(MemoryServiceError, code="unsafe_start"):
    """The configuration puts data or privacy at risk."""


@contextmanager
def after_write() -> Generator[None]:
    """Turn StoreUnavailable into OutcomeUnknown for reads after a write, so that none claims that nothing changed."""
    try:
        yield
    except StoreUnavailable as error:
        message = "it was done, but Redis did not return the result"
        raise OutcomeUnknown(message, hint=error.hint, retry_after=error.retry_after) from error
