"""The messages on Redis streams: embed jobs, asks, and the replies to asks.

`trace` is the W3C `traceparent` of the operation that it belongs to, where that is traced.
Bodies may be sealed: `seal` names the key they are encrypted under and is empty for clear ones.
Their JSON Schemas are in `schemas/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memory_core.crypto.sealing import Transports
from memory_core.errors import Tampered
from memory_core.records.codec import DecodeError, pack, unpack

MESSAGE_VERSION = 1
Fields = dict[bytes, bytes]
CLEAR = Transports()
"""What a process without a transport key has: it neither seals nor opens."""


class BadMessage(ValueError):
    """A stream entry that no version of this code wrote."""


@dataclass(frozen=True, slots=True)
class Job:
    """One text of one memory to embed; `entry` is its stream id."""

    entry: str
    memory_id: str
    rev: int
    content_hash: str
    piece: int
    model: str
    seal: str
    body: bytes
    trace: str = ""

    @classmethod
    def parse(cls, entry: bytes, fields: Fields) -> Job:
        """Read what the store Function wrote.

        Raises:
            BadMessage: a field is missing, or the version is unknown.
        """
        try:
            _check_version(fields)
            return cls(
                entry=entry.decode(),
                memory_id=fields[b"id"].decode(),
                rev=int(fields[b"rev"]),
                content_hash=fields[b"hash"].decode(),
                piece=int(fields[b"piece"]),
                model=fields[b"model"].decode(),
                seal=fields[b"seal"].decode(),
                body=fields[b"body"],
                trace=_trace(fields),
            )
        except (KeyError, ValueError) as error:
            raise BadMessage(f"job {entry!r}: {error}") from error


@dataclass(frozen=True, slots=True)
class Ask:
    """Texts whose vectors a server waits for until `deadline` (epoch milliseconds).

    One read without the key that it is sealed under has no texts.
    """

    id: str
    reply_to: str
    model: str
    deadline: int
    texts: tuple[str, ...]
    seal: str = ""
    trace: str = ""

    def fields(self, transports: Transports = CLEAR) -> dict[str, str | int | bytes]:
        """Give the stream entry, its body under the key that `seal` names."""
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
        """Read an entry.

        Raises:
            BadMessage: a field is missing, the version is unknown, or the body was altered.
        """
        try:
            _check_version(fields)
            ask_id, reply_to, seal = (fields[name].decode() for name in (b"id", b"reply", b"seal"))
            held = not seal or seal in transports
            body = transports.open(seal, fields[b"body"], "ask", ask_id, reply_to) if held else pack([])
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
    """Vectors for an ask, float32 little-endian rows of `dimension`, or the reason there are none."""

    ask_id: str
    dimension: int = 0
    vectors: bytes = b""
    error: str = ""
    seal: str = ""

    def fields(self, transports: Transports = CLEAR) -> dict[str, str | int | bytes]:
        """Give the stream entry, its body under the key that `seal` names."""
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
        """Read an entry.

        Raises:
            BadMessage: a field is missing, the version is unknown, or the body was altered or cannot be opened.
        """
        try:
            _check_version(fields)
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
    """Walk what XREAD or XREADGROUP gave over RESP3 as (stream, entry id, fields)."""
    for stream, batches in (answer or {}).items():
        for batch in batches:
            for entry, fields in batch:
                yield stream, entry, fields


def _trace(fields: Fields) -> str:
    """Give the W3C `traceparent` of a message; empty if it has none, which is no reason to refuse it."""
    return fields.get(b"trace", b"").decode("ascii", "replace")


def _check_version(fields: Fields) -> None:
    if fields[b"v"] != b"%d" % MESSAGE_VERSION:
        raise ValueError(f"version {fields[b'v']!r} is not {MESSAGE_VERSION}")
