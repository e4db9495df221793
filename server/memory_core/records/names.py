"""Names, which appear in keys, and labels, which are free text. Callers choose both."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from memory_core.errors import InvalidArgument, echo

NAME_PATTERN = r"[a-z0-9][a-z0-9_.-]{0,63}"
LABEL_MAX_BYTES = 256
_RAW_MAX_BYTES = 4 * LABEL_MAX_BYTES
"""Limit before normalisation, which takes quadratic time and shortens text to a third at most."""
SEPARATOR = "\x1f"  # Separates labels in a TAG field. No label contains it, because control characters are refused.

RESERVED_AGENTS = frozenset({"operator", "console", "server", "you", "your", "me"})
"""The audit names this product's own actors so: no token may claim them."""

_NAME = re.compile(NAME_PATTERN)
_SPACES = re.compile(" +")
_NOT_IN_NAME = re.compile(r"[^a-z0-9_.-]+")
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


def check_name(value: str, what: str = "name") -> str:
    """Return `value` if it is a name (of an agent or a namespace). Raises InvalidArgument if it is not."""
    if _NAME.fullmatch(value):
        return value
    raise InvalidArgument(
        f"{what} {echo(value)} is not a name",
        hint="use 1 to 64 of a-z, 0-9, '_', '.', '-', beginning with a letter or a digit",
    )


def canonical_name(value: str, what: str = "name") -> str:
    """Return the name that a person means: lower case, and hyphens for spaces. Nothing else changes.

    Raises InvalidArgument if that is no name, such as for letters that are not ASCII.
    """
    if _NAME.fullmatch(value) or len(value) > LABEL_MAX_BYTES:
        return check_name(value, what)
    name = _SPACES.sub("-", unicodedata.normalize("NFC", value).lower().strip(" "))
    return name if _NAME.fullmatch(name) else check_name(value, what)


def only_names(found: Iterable[bytes]) -> list[str]:
    """Return the names among the members of a set, sorted; anything else in it is ignored."""
    return sorted(name for raw in found if _NAME.fullmatch(name := raw.decode(errors="replace")))


def check_agent_name(value: str) -> str:
    """Return the name of an agent that a credential may name. Raises InvalidArgument for reserved and bad names."""
    if value in RESERVED_AGENTS:
        raise InvalidArgument(f"the name {value} is reserved", hint="choose another name for the agent")
    return check_name(value, "agent")


def to_name(value: str, default: str = "anonymous") -> str:
    """Turn any text, such as a client's title, into a name."""
    folded = unicodedata.normalize("NFKD", value[:LABEL_MAX_BYTES]).encode("ascii", "ignore").decode().lower()
    candidate = _NOT_IN_NAME.sub("-", folded).strip("-_.")[:64]
    return candidate if _NAME.fullmatch(candidate) else default


def split_labels(text: str | None) -> tuple[str, ...]:
    """Read the names or labels that Redis keeps in one field."""
    return tuple(text.split(SEPARATOR)) if text else ()


def check_label(value: str, what: str = "label") -> str:
    """Return a label (tag, context, source) as NFC, trimmed. Raises InvalidArgument unless it has 1 to 256 bytes."""
    if len(value.encode(errors="surrogatepass")) > _RAW_MAX_BYTES:
        raise _wrong_size(value, what, f"more than {_RAW_MAX_BYTES}")
    if any(unicodedata.category(char) in _FORBIDDEN_CATEGORIES for char in value):
        raise InvalidArgument(
            f"{what} {echo(value)} holds a control character, a lone surrogate or an unassigned character",
            hint="labels are plain text of up to 256 bytes on one line",
        )
    label = unicodedata.normalize("NFC", value).strip()
    size = len(label.encode())
    if not 1 <= size <= LABEL_MAX_BYTES:
        raise _wrong_size(value, what, size)
    return label


def _wrong_size(value: str, what: str, size: int | str) -> InvalidArgument:
    return InvalidArgument(
        f"{what} {echo(value)} has {size} bytes; 1 to {LABEL_MAX_BYTES} are allowed",
        hint="shorten it; long text belongs in content or metadata",
    )
