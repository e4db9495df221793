"""Typed errors. Each says what was wrong, what is allowed and what to do."""

from __future__ import annotations

ECHO_LIMIT = 64


def echo(value: object) -> str:
    """Quote `value` for an error text: printable, at most 64 characters of it."""
    text = value if isinstance(value, str) else repr(value)
    short = text[:ECHO_LIMIT]
    return ascii(short) + ("…" if len(text) > ECHO_LIMIT else "")


class MemoryServiceError(Exception):
    """Base of all errors that callers see.

    `code` is stable, for programs. The message says what was wrong and what is allowed; `hint` says what
    to do next; `retry_after` is in seconds.
    """

    code = "internal"

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after = retry_after

    def details(self) -> dict[str, str | float]:
        """Give the error as programs read it; empty fields are left out."""
        fields = {"code": self.code, "message": self.message, "hint": self.hint, "retry_after": self.retry_after}
        return {name: value for name, value in fields.items() if value not in (None, "")}

    def text(self) -> str:
        """Give the error in one line for people and models."""
        return f"{self.code}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class InvalidArgument(MemoryServiceError):
    """An argument is of the wrong type, out of range, hostile or unknown."""

    code = "invalid_argument"


class NotFound(MemoryServiceError):
    """The record does not exist or the caller may not read it; the two look the same."""

    code = "not_found"


class Forbidden(MemoryServiceError):
    """The caller may read the record but not do this to it."""

    code = "forbidden"


class Unauthenticated(MemoryServiceError):
    """The token is unknown, expired, revoked or another agent's; all look the same."""

    code = "unauthenticated"


class IssuerUnavailable(MemoryServiceError):
    """The keys that verify tokens are not available, so no token is accepted."""

    code = "issuer_unavailable"


class RateLimited(MemoryServiceError):
    """The agent exceeds its rate limit."""

    code = "rate_limited"


class Overloaded(MemoryServiceError):
    """The server is overloaded and did nothing. `retry_after` says when to try again."""

    code = "overloaded"


class Conflict(MemoryServiceError):
    """The record is not in the state that the caller expected."""

    code = "conflict"


class LeaseLost(Conflict):
    """The lease token is not the current one: the agent no longer holds the task."""

    code = "lease_lost"


class QuotaExceeded(MemoryServiceError):
    """The agent or the namespace has reached its quota."""

    code = "quota_exceeded"


class Tampered(MemoryServiceError):
    """The stored data was changed outside this server, or its key was destroyed."""

    code = "tampered"


class ConfirmationNeeded(MemoryServiceError):
    """The operation is large or irreversible and needs confirmation."""

    code = "confirmation_needed"


class NotSupported(MemoryServiceError):
    """The deployment lacks something that this request needs, such as a master key."""

    code = "not_supported"


class KeyMissing(NotSupported):
    """This process does not have the key that this needs."""

    code = "key_missing"


class StoreUnavailable(MemoryServiceError):
    """Redis does not answer, is loading, or refuses. Nothing was changed."""

    code = "store_unavailable"


class StoreRefused(StoreUnavailable):
    """Redis refuses: it is full, read-only, or does not know this user. A retry does not help."""


class OutcomeUnknown(MemoryServiceError):
    """The connection broke after a write was sent. The write is applied in full or not at all."""

    code = "outcome_unknown"


class EmbeddingUnavailable(MemoryServiceError):
    """No sidecar returned a vector in time."""

    code = "embedding_unavailable"


class BulkUnavailable(MemoryServiceError):
    """No bulk engine answered in time, or it refused."""

    code = "bulk_unavailable"


class ModelMismatch(MemoryServiceError):
    """The index is for another embedding model or dimension."""

    code = "model_mismatch"


class UnsafeStart(MemoryServiceError):
    """The configuration puts data or privacy at risk."""

    code = "unsafe_start"
