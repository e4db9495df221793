"""Memory records: their values and their Redis hashes."""

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
from memory_core.records.names import SEPARATOR, split_labels
from memory_core.records.times import NEVER, to_redis

log = logging.getLogger(__name__)


class MemoryType(StrEnum):
    """The kind of content."""

    CONVERSATION = "conversation"
    CODE = "code"
    DOCUMENT = "document"
    TASK = "task"
    CONTEXT = "context"
    EMBEDDING = "embedding"
    SEARCH_RESULT = "search_result"
    SYSTEM_STATE = "system_state"


class Priority(StrEnum):
    """Sets the default lifetime; searches leave out `archive`."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    ARCHIVE = "archive"


class Visibility(StrEnum):
    """Which agents may read a memory without a grant."""

    PRIVATE = "private"
    SHARED = "shared"
    PUBLIC = "public"


CHUNK_REV = 1  # revision of all further chunks; their content hash identifies the version
HEAD, MORE = "head", "more"  # values of the field `part`: a memory's own hash, and the hashes of its further chunks
BODY_CODEC = "msgpack+zstd"
ZSTD_LEVEL = 6
MAX_BODY = (64 << 20) + 1024  # of the longest content that settings allow, packed
SEALED_CODEC = "aes-256-gcm"
"""Value of `codec` for sensitive memories. Content, metadata and vector are in the fields below, unindexed."""
SEALED, SEALED_BODY = "sealed", "sealed_body"


@dataclass(frozen=True, slots=True)
class Sealed:
    """The loaded encrypted parts of a sensitive memory. `chunk` is a further chunk's text; `model` is the vector's."""

    text: bytes
    chunk: bytes | None = None
    body: bytes | None = None
    vector: bytes | None = None
    model: Model | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One memory, or one chunk of a long one. A sensitive one has no content until `sealed` is opened.

    `content` is the whole text if it was loaded, else the text of chunk number `part` of `chunks`. Times are epoch
    seconds; `vector` is float32 little-endian bytes, unit length, whatever the stored format.
    `signer` is the secret of its integrity code. `state` lists the models of its vectors.
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
    chunks: int = 1
    content_hash: str = ""
    vector: bytes | None = None
    part: int = 0
    codec: str = "text"
    sealed: Sealed | None = None
    signer: str = ""

    @property
    def is_sensitive(self) -> bool:
        return self.codec == SEALED_CODEC

    @property
    def own_rev(self) -> int:
        """The revision of its own hash."""
        return CHUNK_REV if self.part else self.rev

    @property
    def length(self) -> int:
        """The number of characters of its content, metadata and tags."""
        return sum(map(len, (self.content, self.metadata or "", *self.tags)))

    def is_live(self, now: float) -> bool:
        return self.expires_at > now


SIGNED_FIELDS = (
    "content", "type", "priority", "owner", "writer", "visibility", "scope", "tags", "context", "source",
    "seq", "occurred_at", "created_at", "updated_at", "expires_at", "rev", "metadata", "pieces", "hash",
    "part", "codec", "terms", SEALED,
)  # fmt: skip
"""The fields that the integrity code covers, in the order of redis/functions/07_integrity.lua."""
CODE_FIELDS = ("mac", "mac_key")  # the integrity code, and the id of its secret
UNSIGNED_FIELDS = ("model", "body", SEALED_BODY, *CODE_FIELDS)
"""Not covered: what sidecars write, and the body, whose content hash is covered."""
LOADED_FIELDS = (*SIGNED_FIELDS, "model", *CODE_FIELDS)  # the fields of a Record and of its integrity code
_TEXTS = tuple(name for name in LOADED_FIELDS if name not in {"part", "terms", "mac", SEALED})
"""Those with a text that becomes part of the Record."""


def parse(memory_id: str, fields: Mapping[str, bytes | None], vector: bytes | None = None) -> Record | None:
    """Build a Record from LOADED_FIELDS of a hash; None if it is gone or cannot be read."""
    try:
        row: dict[str, Any] = {name: (value := fields[name]) and value.decode() for name in _TEXTS}
        if row["owner"] is None:
            return None
        if fields[SEALED] is not None or row["codec"] == SEALED_CODEC:
            return _sealed_record(memory_id, row, fields[SEALED] or b"")
        return None if row["content"] is None else _record(memory_id, row, vector)
    except ValueError as error:
        log.warning("memory %s cannot be read and is skipped: %s", memory_id, type(error).__name__)
        return None


def _sealed_record(memory_id: str, row: dict[str, Any], sealed: bytes) -> Record:
    """Build the record of a sensitive memory. Its scope comes from owner and id, which the encryption authenticates;
    a direct write to Redis could widen the stored scope."""
    tokens = SEPARATOR.join((f"i:{memory_id}", f"o:{row['owner']}"))
    if not re.fullmatch("[1-9][0-9]*", row["rev"] or ""):
        row |= {"rev": "0"}  # no memory is sealed for this revision
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
        scope=frozenset(split_labels(row["scope"])),
        tags=split_labels(row["tags"]),
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
        chunks=int(row["pieces"] or 1),
        content_hash=row["hash"] or "",
        vector=vector,
        codec=row["codec"] or "text",
        signer=row["mac_key"] or "",
    )


def filter_fields(record: Record) -> dict[str, str]:
    """Return the fields that all chunks of a memory share, so that the same filters match."""
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


def head_fields(record: Record, chunks: Sequence[str]) -> dict[str, str | bytes]:
    """Return the fields of a memory's own hash; the store Function adds times, seq, rev and model.

    It has the text of the first chunk, and the whole of a long content compressed in `body`.
    """
    fields: dict[str, str | bytes] = {
        **filter_fields(record),
        "content": chunks[0],
        "part": HEAD,
        "codec": "text",
        "hash": content_hash(record.content),
    }
    if record.metadata:
        fields["metadata"] = record.metadata
    if len(chunks) > 1:
        fields |= {"codec": BODY_CODEC, "body": compress(record.content), "pieces": str(len(chunks))}
    return fields


def compress(content: str) -> bytes:
    """Compress the body of a long memory: msgpack, then zstandard."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(pack({"content": content}))


def decompress(body: bytes) -> str:
    """Reverse `compress`. Raises zstandard.ZstdError if the body is damaged."""
    if zstandard.frame_content_size(body) > MAX_BODY:  # the library allocates what a frame declares
        raise zstandard.ZstdError(f"the body has more than {MAX_BODY} bytes")
    plain = zstandard.ZstdDecompressor(max_window_size=MAX_BODY).decompress(body, max_output_size=MAX_BODY)
    return unpack(plain)["content"]


def content_hash(content: str) -> str:
    """Hash a content: 128 bits of SHA-256 in hex."""
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
