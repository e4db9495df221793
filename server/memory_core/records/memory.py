"""A memory as it lies in Redis: the values it may take and the hash that holds it."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import zstandard

from memory_core.records.codec import pack, unpack
from memory_core.records.model import Model
from memory_core.records.names import SEPARATOR
from memory_core.records.times import NEVER, to_redis

log = logging.getLogger(__name__)


class MemoryType(StrEnum):
    """What kind of thing is remembered."""

    CONVERSATION = "conversation"
    CODE = "code"
    DOCUMENT = "document"
    TASK = "task"
    CONTEXT = "context"
    EMBEDDING = "embedding"
    SEARCH_RESULT = "search_result"
    SYSTEM_STATE = "system_state"


class Priority(StrEnum):
    """How long a memory lives by default, and whether searches show it."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    ARCHIVE = "archive"


class Visibility(StrEnum):
    """Who may read a memory besides its owner and those with a grant."""

    PRIVATE = "private"
    SHARED = "shared"
    PUBLIC = "public"


HEAD, MORE = "head", "more"
"""Values of `part`: a memory's own hash, and those of its further pieces."""
BODY_CODEC = "msgpack+zstd"
ZSTD_LEVEL = 6
MAX_BODY = 64 << 20
SEALED_CODEC = "aes-256-gcm"
"""Value of `codec` of sensitive memories: content, metadata and vector lie in the fields below, which no index sees."""
SEALED, SEALED_BODY = "sealed", "sealed_body"


@dataclass(frozen=True, slots=True)
class Sealed:
    """The encrypted parts of a sensitive memory, as far as they were loaded: `piece` is a further piece's own text,
    `model` that of the vector.
    """

    text: bytes
    piece: bytes | None = None
    body: bytes | None = None
    vector: bytes | None = None
    model: Model | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One memory, or one piece of a long one. A sensitive one has no content before its `sealed` was opened.

    `content` is the whole text where it was asked for, else that of piece number `part` of `pieces`. Times are
    epoch seconds; `vector` is float32 little-endian bytes, unit length; `signer` names the secret behind its code.
    `state` says of which models it has vectors.
    """

    id: str
    content: str
    type: MemoryType
    priority: Priority
    owner: str
    writer: str
    visibility: Visibility
    scope: frozenset[str]
    tags: tuple[str, ...]
    context: str | None
    source: str | None
    seq: int
    occurred_at: float | None
    created_at: float
    updated_at: float
    expires_at: float
    rev: int
    state: str
    metadata: str | None
    pieces: int = 1
    content_hash: str = ""
    vector: bytes | None = None
    part: int = 0
    codec: str = "text"
    sealed: Sealed | None = None
    signer: str = ""

    @property
    def is_sensitive(self) -> bool:
        """Whether it is encrypted."""
        return self.codec == SEALED_CODEC

    def is_live(self, now: float) -> bool:
        """Whether the soft expiry still lies ahead."""
        return self.expires_at > now


SIGNED_FIELDS = (
    "content", "type", "priority", "owner", "writer", "visibility", "scope", "tags", "context", "source",
    "seq", "occurred_at", "created_at", "updated_at", "expires_at", "rev", "metadata", "pieces", "hash",
    "part", "codec", "terms", SEALED,
)  # fmt: skip
"""The fields of a memory's own hash that its code covers, as redis/functions/07_integrity.lua lists them."""
CODE_FIELDS = ("mac", "mac_key")
"""The code itself, and the id of the secret that it was made under."""
UNSIGNED_FIELDS = ("model", "body", SEALED_BODY, *CODE_FIELDS)
"""What it does not cover: what sidecars write, as the vector itself, and the body, which must have the signed hash."""
LOADED_FIELDS = (*SIGNED_FIELDS, "model", *CODE_FIELDS)
"""What is read of a memory's own hash: a Record, and what proves it."""
_TEXTS = tuple(name for name in LOADED_FIELDS if name not in {"part", "terms", "mac", SEALED})
"""Those of them that a Record says."""


def parse(memory_id: str, fields: Mapping[str, bytes | None], vector: bytes | None = None) -> Record | None:
    """Build a Record from LOADED_FIELDS of a hash; None when it is gone, or of a form not known here."""
    try:
        row: dict[str, Any] = {name: (value := fields[name]) and value.decode() for name in _TEXTS}
        if row["owner"] is None:
            return None
        if fields[SEALED] is not None or row["codec"] == SEALED_CODEC:
            return _sealed_record(memory_id, row, fields[SEALED] or b"")
        return None if row["content"] is None else _record(memory_id, row, vector)
    except ValueError as error:
        log.warning("memory %s cannot be read and is left out: %s", memory_id, type(error).__name__)
        return None


def _sealed_record(memory_id: str, row: dict[str, Any], sealed: bytes) -> Record:
    """Build the record of a sensitive memory. Who may read it follows from its owner and id, which the encryption
    binds, and not from the scope, which whoever writes to Redis could widen."""
    tokens = SEPARATOR.join((f"i:{memory_id}", f"o:{row['owner']}"))
    if not re.fullmatch("[1-9][0-9]*", row["rev"] or ""):
        row |= {"rev": "0"}  # what no memory is sealed for
    row |= {"content": "", "metadata": None, "scope": tokens}
    return replace(_record(memory_id, row, None), sealed=Sealed(sealed))


def _record(memory_id: str, row: dict[str, Any], vector: bytes | None) -> Record:
    return Record(
        id=memory_id,
        content=row["content"],
        type=MemoryType(row["type"] or "context"),
        priority=Priority(row["priority"] or "medium"),
        owner=row["owner"],
        writer=row["writer"] or "",
        visibility=Visibility(row["visibility"] or "private"),
        scope=frozenset(_split(row["scope"])),
        tags=_split(row["tags"]),
        context=row["context"],
        source=row["source"],
        seq=int(row["seq"] or 0),
        occurred_at=_number(row["occurred_at"]),
        created_at=_number(row["created_at"]) or 0.0,
        updated_at=_number(row["updated_at"]) or 0.0,
        expires_at=_number(row["expires_at"]) or NEVER,
        rev=int(row["rev"] or 0),
        state=row["model"] or "",
        metadata=row["metadata"],
        pieces=int(row["pieces"] or 1),
        content_hash=row["hash"] or "",
        vector=vector,
        codec=row["codec"] or "text",
        signer=row["mac_key"] or "",
    )


def filter_fields(record: Record) -> dict[str, str]:
    """Give the fields that every piece of a memory repeats, so that it is found and permitted alike."""
    optional = {
        "tags": SEPARATOR.join(record.tags),
        "context": record.context,
        "source": record.source,
        "occurred_at": None if record.occurred_at is None else to_redis(record.occurred_at),
    }
    return {
        "type": record.type,
        "priority": record.priority,
        "owner": record.owner,
        "writer": record.writer,
        "visibility": record.visibility,
        "scope": SEPARATOR.join(sorted(record.scope)),
    } | {name: value for name, value in optional.items() if value}


def head_fields(record: Record, pieces: Sequence[str]) -> dict[str, str | bytes]:
    """Give the fields of a memory's own hash; the store Function adds times, seq, rev and model.

    The indexed text is the first piece's; the whole of a long content lies compressed beside it.
    """
    fields: dict[str, str | bytes] = {
        **filter_fields(record),
        "content": pieces[0],
        "part": HEAD,
        "codec": "text",
        "hash": content_hash(record.content),
    }
    if record.metadata:
        fields["metadata"] = record.metadata
    if len(pieces) > 1:
        fields |= {"codec": BODY_CODEC, "body": compress(record.content), "pieces": str(len(pieces))}
    return fields


def compress(content: str) -> bytes:
    """Pack the body of a long memory: msgpack, then zstandard."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(pack({"content": content}))


def decompress(body: bytes) -> str:
    """Unpack what `compress` packed.

    Raises:
        zstandard.ZstdError: it is not that.
    """
    return unpack(zstandard.ZstdDecompressor().decompress(body, max_output_size=MAX_BODY))["content"]


def content_hash(content: str) -> str:
    """Identify a content: 128 bits of SHA-256 in hex."""
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(SEPARATOR)) if text else ()


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
