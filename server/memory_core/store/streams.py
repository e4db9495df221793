"""The messages on Redis streams: embed jobs, asks, and replies to asks. Their JSON Schemas are in `schemas/`.

`trace` is the W3C `traceparent` of a traced operation. `seal` is the id of the key that encrypts the body; empty if the
body is in clear.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memory_core.crypto.sealing import Transports
from memory_core.errors import Tampered
from memory_core.records.codec import DecodeError, pack, unpack

MESSAGE_VERSION = 1
RELEASED_MS = 3_600_000
"""Idle time set on entries that a sidecar releases: more than any lease."""
Fields = dict[bytes, bytes]
CLEAR = Transports()  # the keys of a process without transport keys


class BadMessage(ValueError):
    """A malformed stream entry."""


@dataclass(frozen=True, slots=True)
class Job:
    """A text of a memory to embed; `entry` is its stream id. `half`: its vector is stored in half precision."""

    entry: str
    memory_id: str
    rev: int
    content_hash: str
    chunk: int
    model: str
    seal: str
    body: bytes
    trace: str = ""
    half: bool = False

    @classmethod
    def parse(cls, entry: bytes, fields: Fields) -> Job:
        """Parse an entry that the store Function wrote. Raises BadMessage if it is malformed."""
        try:
            check_version(fields)
            return cls(
                entry=entry.decode(),
                memory_id=fields[b"id"].decode(),
                rev=int(fields[b"rev"]),
                content_hash=fields[b"hash"].decode(),
                chunk=int(fields[b"piece"]),
                model=fields[b"model"].decode(),
                seal=fields[b"seal"].decode(),
                body=fields[b"body"],
                trace=_trace(fields),
                half=fields.get(b"half") == b"1",
            )
        except (KeyError, ValueError) as error:
            raise BadMessage(f"job {entry!r}: {error}") from error


@dataclass(frozen=True, slots=True)
class Ask:
    """Texts whose vectors a server waits for until `deadline` (epoch milliseconds).

    `texts` is empty if the reader lacks the transport key.
    """

    id: str
    reply_to: str
    model: str
    deadline: int
    texts: tuple[str, ...]
    seal: str = ""
    trace: str = ""

    def fields(self, transports: Transports = CLEAR) -> dict[str, str | int | bytes]:
        """Return the stream entry. Its body is encrypted under the key `seal`."""
        traced = {"trace": self.trace} if self.trace else {}
        return {
            **traced,
            "v": MESSAGE_VERSION,
            "id": self.id,
            "reply": self.reply_to,
            "model": self.model,
            "deadline": self.deadline,
            "seal": self.seal,
            "body": transports.seal(self.seal, pack(list(self.texts)), "ask", self.id, self.reply_to),
        }

    @classmethod
    def parse(cls, fields: Fields, transports: Transports = CLEAR) -> Ask:
        """Parse an entry. Raises BadMessage: a field is missing, the version is unknown, or the body was altered."""
        try:
            check_version(fields)
            ask_id, reply_to, seal = (fields[name].decode() for name in (b"id", b"reply", b"seal"))
            can_open = not seal or seal in transports
            body = transports.open(seal, fields[b"body"], "ask", ask_id, reply_to) if can_open else pack([])
            return cls(
                id=ask_id,
                reply_to=reply_to,
                model=fields[b"model"].decode(),
                deadline=int(fields[b"deadline"]),
                texts=tuple(unpack(body)),
                seal=seal,
                trace=_trace(fields),
            )
        except (KeyError, Tampered, *DecodeError) as error:
            raise BadMessage(f"ask: {error}") from error


@dataclass(frozen=True, slots=True)
class Reply:
    """Vectors for an ask, float32 little-endian rows of `dimension`, or an error."""

    ask_id: str
    dimension: int = 0
    vectors: bytes = b""
    error: str = ""
    seal: str = ""

    def fields(self, transports: Transports = CLEAR) -> dict[str, str | int | bytes]:
        """Return the stream entry. Its body is encrypted under the key `seal`."""
        return {
            "v": MESSAGE_VERSION,
            "id": self.ask_id,
            "dimension": self.dimension,
            "error": self.error,
            "seal": self.seal,
            "body": transports.seal(self.seal, self.vectors, "reply", self.ask_id, str(self.dimension)),
        }

    @classmethod
    def parse(cls, fields: Fields, transports: Transports = CLEAR) -> Reply:
        """Parse an entry. Raises BadMessage if it is malformed, was altered or cannot be opened."""
        try:
            check_version(fields)
            ask_id, seal, dimension = fields[b"id"].decode(), fields[b"seal"].decode(), int(fields[b"dimension"])
            return cls(
                ask_id=ask_id,
                dimension=dimension,
                vectors=transports.open(seal, fields[b"body"], "reply", ask_id, str(dimension)),
                error=fields[b"error"].decode(),
                seal=seal,
            )
        except (KeyError, ValueError, Tampered) as error:
            raise BadMessage(f"reply: {error}") from error


def entries(answer: Any) -> Iterator[tuple[bytes, bytes, Fields]]:
    """Yield (stream, entry id, fields) from a RESP3 answer to XREAD or XREADGROUP."""
    for stream, batches in (answer or {}).items():
        for batch in batches:
            for entry, fields in batch:
                yield stream, entry, fields


def _trace(fields: Fields) -> str:
    return fields.get(b"trace", b"").decode("ascii", "replace")


def check_version(fields: Fields) -> None:
    """Raise ValueError unless a message has the current version."""
    if fields[b"v"] != b"%d" % MESSAGE_VERSION:
        raise ValueError(f"version {fields[b'v']!r} is not {MESSAGE_VERSION}")
