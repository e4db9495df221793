"""The messages on Redis streams: embed jobs, asks, and the replies to asks.

Bodies may be sealed: `seal` names the key they are encrypted under and is empty for clear ones.
Their JSON Schemas are in `schemas/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memory_core.codec import DecodeError, pack, unpack

MESSAGE_VERSION = 1
Fields = dict[bytes, bytes]


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
            )
        except (KeyError, ValueError) as error:
            raise BadMessage(f"job {entry!r}: {error}") from error


@dataclass(frozen=True, slots=True)
class Ask:
    """Texts whose vectors a server waits for until `deadline` (epoch milliseconds)."""

    id: str
    reply_to: str
    model: str
    deadline: int
    texts: tuple[str, ...]
    seal: str = ""

    def fields(self) -> dict[str, str | int | bytes]:
        """Give the stream entry."""
        return {
            "v": MESSAGE_VERSION,
            "id": self.id,
            "reply": self.reply_to,
            "model": self.model,
            "deadline": self.deadline,
            "seal": self.seal,
            "body": pack(list(self.texts)),
        }

    @classmethod
    def parse(cls, fields: Fields) -> Ask:
        """Read an entry.

        Raises:
            BadMessage: a field is missing, or the version is unknown.
        """
        try:
            _check_version(fields)
            return cls(
                id=fields[b"id"].decode(),
                reply_to=fields[b"reply"].decode(),
                model=fields[b"model"].decode(),
                deadline=int(fields[b"deadline"]),
                texts=tuple(unpack(fields[b"body"])),
                seal=fields[b"seal"].decode(),
            )
        except (KeyError, *DecodeError) as error:
            raise BadMessage(f"ask: {error}") from error


@dataclass(frozen=True, slots=True)
class Reply:
    """Vectors for an ask, float32 little-endian rows of `dimension`, or the reason there are none."""

    ask_id: str
    dimension: int = 0
    vectors: bytes = b""
    error: str = ""
    seal: str = ""

    def fields(self) -> dict[str, str | int | bytes]:
        """Give the stream entry."""
        return {
            "v": MESSAGE_VERSION,
            "id": self.ask_id,
            "dimension": self.dimension,
            "error": self.error,
            "seal": self.seal,
            "body": self.vectors,
        }

    @classmethod
    def parse(cls, fields: Fields) -> Reply:
        """Read an entry.

        Raises:
            BadMessage: a field is missing, or the version is unknown.
        """
        try:
            _check_version(fields)
            return cls(
                ask_id=fields[b"id"].decode(),
                dimension=int(fields[b"dimension"]),
                vectors=fields[b"body"],
                error=fields[b"error"].decode(),
                seal=fields[b"seal"].decode(),
            )
        except (KeyError, ValueError) as error:
            raise BadMessage(f"reply: {error}") from error


def entries(answer: Any) -> Iterator[tuple[bytes, bytes, Fields]]:
    """Walk what XREAD or XREADGROUP gave over RESP3 as (stream, entry id, fields)."""
    for stream, batches in (answer or {}).items():
        for batch in batches:
            for entry, fields in batch:
                yield stream, entry, fields


def _check_version(fields: Fields) -> None:
    if fields[b"v"] != b"%d" % MESSAGE_VERSION:
        raise ValueError(f"version {fields[b'v']!r} is not {MESSAGE_VERSION}")
