"""Typed errors, so that every refusal says what was wrong, what is allowed and what to do."""

from __future__ import annotations

ECHO_LIMIT = 64


def echo(value: object) -> str:
    """Quote `value` for an error text: printable, at most 64 characters of it."""
    text = value if isinstance(value, str) else repr(value)
    short = text[:ECHO_LIMIT]
    return ascii(short) + ("…" if len(text) > ECHO_LIMIT else "")


class MemoryServiceError(Exception):
    """Base of everything that a caller may read.

    `code` is stable and meant for programs; the message says what was wrong and what is allowed;
    `hint` says what to do next; `retry_after` is in seconds.
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
    """No such record, or none that the caller may read: the two look the same."""

    code = "not_found"


class Forbidden(MemoryServiceError):
    """The caller may see the record but not do this to it."""

    code = "forbidden"


class Unauthenticated(MemoryServiceError):
    """The token is unknown, expired or revoked, or for somebody else: all alike."""

    code = "unauthenticated"


class IssuerUnavailable(MemoryServiceError):
    """The keys by which tokens are checked cannot be had now, so that nobody can be let in."""

    code = "issuer_unavailable"


class RateLimited(MemoryServiceError):
    """The agent calls more often than it may."""

    code = "rate_limited"


class Overloaded(MemoryServiceError):
    """The server has more to do than it can; nothing was done. `retry_after` says when to come back."""

    code = "overloaded"


class Conflict(MemoryServiceError):
    """The state of the record is not the one that the caller expected."""

    code = "conflict"


class LeaseLost(Conflict):
    """The lease token is not, or no longer, the one in force: the task is somebody else's, or nobody's, now."""

    code = "lease_lost"


class QuotaExceeded(MemoryServiceError):
    """The agent or the namespace holds as much of this as it may."""

    code = "quota_exceeded"


class Tampered(MemoryServiceError):
    """What lies in Redis is not as a server of ours wrote it there, or its key was destroyed."""

    code = "tampered"


class ConfirmationNeeded(MemoryServiceError):
    """The act is large or final and nobody confirmed it."""

    code = "confirmation_needed"


class NotSupported(MemoryServiceError):
    """The deployment lacks what this request needs, such as a master key."""

    code = "not_supported"


class KeyMissing(NotSupported):
    """The key that this needs was not given to this process."""

    code = "key_missing"


class StoreUnavailable(MemoryServiceError):
    """Redis does not answer, is loading, or refuses; nothing was changed."""

    code = "store_unavailable"


class StoreRefused(StoreUnavailable):
    """Redis answers, and refuses: it is full, read-only, or does not know this user. Trying again soon is no use."""


class OutcomeUnknown(MemoryServiceError):
    """The connection broke after a write was sent: it is applied wholly or not at all."""

    code = "outcome_unknown"


class EmbeddingUnavailable(MemoryServiceError):
    """No sidecar gave a vector in time."""

    code = "embedding_unavailable"


class BulkUnavailable(MemoryServiceError):
    """No sidecar's bulk engine answered in time, or it refused."""

    code = "bulk_unavailable"


class ModelMismatch(MemoryServiceError):
    """The index was built for another embedding model or dimension."""

    code = "model_mismatch"


class UnsafeStart(MemoryServiceError):
    """The deployment is configured so that data or privacy would be at risk."""

    code = "unsafe_start"
