"""Typed errors. Each says what was wrong, what is allowed and what to do. They echo input only as plain text."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import ClassVar

ECHO_LIMIT = 64

# Characters that break a line, reorder text or are invisible: all of the Unicode categories Cc (but for tab and
# newline), Cf, Cs, Zl and Zp, the tag characters, invisible letters, and the variation selectors of no emoji.
_UNSAFE = (
    "\x00\x08", "\x0b\x1f", "\x7f\x9f", "\xad\xad", "\u034f\u034f", "\u0600\u0605", "\u061c\u061c", "\u06dd\u06dd",
    "\u070f\u070f", "\u0890\u0890", "\u0891\u0891", "\u08e2\u08e2", "\u115f\u115f", "\u1160\u1160", "\u17b4\u17b4",
    "\u17b5\u17b5", "\u180b\u180f", "\u200b\u200b", "\u200e\u200e", "\u200f\u200f", "\u2028\u202e", "\u2060\u206f",
    "\u3164\u3164", "\ud800\udfff", "\ufe00\ufe0d", "\ufeff\ufeff", "\uffa0\uffa0", "\ufff0\ufffb",
    "\U000110bd\U000110bd", "\U000110cd\U000110cd", "\U00013430\U0001343f", "\U0001bca0\U0001bca3",
    "\U0001d173\U0001d17a", "\U000e0000\U000e0fff",
)  # fmt: skip
"""The first and the last character of each range."""
_CLASS = "".join(f"{first}-{last}" for first, last in _UNSAFE)
# Joiners and the emoji's own selectors stay where they shape letters and emoji, never within ASCII nor in a row.
_SHAPED = rf"[^\x00-\x7f\u200c\u200d{_CLASS}]"
_DRAWN = rf"[^\x00-\x7f\u200c\u200d\ufe0e\ufe0f{_CLASS}]|[0-9#*]"
_STRAY = re.compile(
    r"[\u200c\u200d]{2,}|[\ufe0e\ufe0f]{2,}"
    rf"|(?<!{_SHAPED})[\u200c\u200d]|[\u200c\u200d](?!{_SHAPED})|(?<!{_DRAWN})[\ufe0e\ufe0f]"
)


def plain(text: str) -> str:
    """Escape characters that break lines, reorder text, control terminals or are invisible; keep tabs and newlines.

    The escapes are those of JSON, so JSON stays JSON with the same value.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = text.replace("\r\n", "\n")
    return (kept if kept.isascii() else _STRAY.sub(_escape, kept)).translate(_escapes())


def plain_line(text: str) -> str:
    """Escape like `plain`, newlines too."""
    return plain(text).replace("\n", "\\n")


def _escape(found: re.Match[str]) -> str:
    return _json_escape(found[0])


def _json_escape(text: str) -> str:
    units = text.encode("utf-16-be", "surrogatepass").hex("-", 2)
    return "\\u" + units.replace("-", "\\u")


@cache
def _escapes() -> dict[int, str]:
    ranges = [range(ord(first), ord(last) + 1) for first, last in _UNSAFE]
    return {code: _json_escape(chr(code)) for codes in ranges for code in codes}


def echo(value: object) -> str:
    """Quote `value` for an error text: letters of any language, all else escaped, at most 64 characters of it."""
    text = value if isinstance(value, str) else repr(value)
    short = text[:ECHO_LIMIT]
    return plain_line(repr(short)) + ("…" if len(text) > ECHO_LIMIT else "")


class MemoryServiceError(Exception):
    """Base of all errors that callers see. `code` is stable, for programs. The message says what was wrong and what is
    allowed; `hint` says what to do next; `retry_after` is in seconds.
    """

    code: ClassVar[str] = "internal"

    def __init_subclass__(cls, code: str | None = None) -> None:
        cls.code = code or cls.code

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        self.message = plain_line(message)
        super().__init__(self.message)
        self.hint = plain_line(hint)
        self.retry_after = retry_after

    def details(self) -> dict[str, str | float]:
        """Return the error for programs, without empty fields."""
        fields = {"code": self.code, "message": self.message, "hint": self.hint, "retry_after": self.retry_after}
        return {name: value for name, value in fields.items() if value not in (None, "")}

    def text(self) -> str:
        """Return the error in one line for people and models."""
        wait = f"retry after {self.retry_after:g} s" if self.retry_after else ""
        todo = "; ".join(filter(None, [self.hint, wait]))
        return f"{self.code}: {self.message}" + (f" ({todo})" if todo else "")


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


class StoreFull(StoreRefused, code="store_full"):
    """The disk or the memory of Redis is full. Reads work; with a full memory, so does what frees some."""


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


class SignedElsewhere(UnsafeStart, code="key_missing"):
    """The namespace is signed under a key that this process does not have."""


@contextmanager
def after_write() -> Generator[None]:
    """Turn StoreUnavailable into OutcomeUnknown for reads after a write, so that none claims that nothing changed."""
    try:
        yield
    except StoreUnavailable as error:
        message = "it was done, but Redis did not return the result"
        raise OutcomeUnknown(message, hint=error.hint, retry_after=error.retry_after) from error
