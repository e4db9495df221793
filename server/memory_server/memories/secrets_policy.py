"""Recognises credentials in a memory before it is written, and applies the setting `secrets`.

Tags, context and source stay readable in Redis even if the memory is sensitive. So a credential in one of them is
refused, unless the policy is to warn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from memory_core.errors import InvalidArgument
from memory_core.records.memory import SEALED_CODEC, Record, Visibility
from memory_core.settings.settings import Settings
from memory_server.contract.memories import Secrets
from memory_server.memories.slow_work import in_turn
from memory_server.security.credentials import find_credentials, redact

_IN_THREAD = 20_000
_SHORTEST = 12
"""No shorter text is a credential by itself, without a name before it."""
_LABELS_HINT = "remove it from tags, context and source: they are never encrypted"


@dataclass(frozen=True, slots=True)
class _Found:
    """Kinds of credentials in the labels and in the rest, and the rest without them."""

    in_labels: set[str]
    kinds: set[str]
    content: str
    metadata: str | None


async def screen(record: Record, settings: Settings) -> tuple[Record, Secrets | None]:
    """Apply the policy as `apply_policy`, for a long content in a thread, so that other calls do not wait."""
    if len(record.content) < _IN_THREAD:
        return apply_policy(record, settings)
    return await in_turn(apply_policy, record, settings)


def apply_policy(record: Record, settings: Settings) -> tuple[Record, Secrets | None]:
    """Return the record as the policy allows it to be written, and what looked like a credential.

    The content and metadata of a sensitive memory are encrypted anyway and not examined.

    Raises:
        InvalidArgument: the policy refuses it.
    """
    found = _find(record)
    if not found.kinds and not found.in_labels:
        return record, None
    kinds, policy = sorted(found.kinds | found.in_labels), settings.secrets
    if policy == "warn":
        return record, Secrets(kinds=kinds, action="stored", encryptable=settings.has_master_key)
    if policy == "refuse" or found.in_labels:
        where, hint = (
            ("tags, context or source", _LABELS_HINT) if found.in_labels else ("content or metadata", _hint(settings))
        )
        raise InvalidArgument(f"{where} look like a credential ({', '.join(kinds)})", hint=hint)
    if policy == "redact":
        return replace(record, content=found.content, metadata=found.metadata), Secrets(kinds=kinds, action="redacted")
    if record.visibility is Visibility.PUBLIC:
        message = f"content or metadata look like a credential ({', '.join(kinds)}), and no public memory is encrypted"
        raise InvalidArgument(message, hint="store it private, or leave the credential out")
    return replace(record, codec=SEALED_CODEC), Secrets(kinds=kinds, action="encrypted")


def _hint(settings: Settings) -> str:
    encrypt = ", or pass sensitive=true, which encrypts content and metadata" if settings.has_master_key else ""
    return f"leave it out, or keep it in a secret store{encrypt}"


def has_credential(texts: Iterable[str | None], metadata: dict[str, Any] | None = None) -> bool:
    """Whether parts of a stored memory look like a credential, so that they are not attached to an answer unasked."""
    kinds = set[str]()
    _clean("", metadata, kinds)
    return bool(kinds) or any(find_credentials(text) for text in texts if text)


def _find(record: Record) -> _Found:
    labels = " \n ".join(filter(None, (*record.tags, record.context, record.source)))
    in_labels = {one.kind for one in find_credentials(labels)}
    if record.is_sensitive:
        return _Found(in_labels, set(), record.content, record.metadata)
    in_content = find_credentials(record.content)
    kinds = {one.kind for one in in_content}
    content = redact(record.content, in_content)
    if record.metadata is None:
        return _Found(in_labels, kinds, content, None)
    cleaned = _clean("", json.loads(record.metadata), kinds)
    return _Found(in_labels, kinds, content, json.dumps(cleaned, ensure_ascii=False, separators=(",", ":")))


def _clean(name: str, value: Any, kinds: set[str]) -> Any:
    """Redact the names and texts of a JSON value, and collect the kinds of credentials.

    `name` is the name of the value: "password" makes its value a credential.
    """
    if isinstance(value, dict):
        return {_clean("", key, kinds): _clean(key, part, kinds) for key, part in value.items()}
    if isinstance(value, list):
        return [_clean(name, part, kinds) for part in value]
    if not isinstance(value, str) or (not name and len(value) < _SHORTEST):
        return value
    before = f'"{name}": "'
    text = f'{before}{value}"'
    found = find_credentials(text)
    kinds.update(one.kind for one in found)
    return redact(text, found)[len(before) : -1] if found else value
