"""The messages between servers and the bulk engine: what to compare with what, and what was found.

Their JSON Schemas are `schemas/bulk.json` and `schemas/reply.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import msgpack
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from memory_core.crypto.sealing import Transports
from memory_core.records.codec import DecodeError, unpack
from memory_core.records.names import check_name
from memory_core.store.streams import CLEAR, MESSAGE_VERSION, BadMessage, Fields

Clause = tuple[str, Sequence[str]]
"""A field and values, of which a record must carry one. `id` and `scope` are fields too."""
IndexType = Literal["Flat", "IVFFlat", "HNSW", "CAGRA"]
MOST_QUERIES = 1024
MOST_RESULTS = 1 << 18
"""Neighbours that one request may ask for, all queries together."""
MOST_BYTES = 8 << 20


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Selection(_Part):
    """The rows to compare with: every clause of `every` must match and none of `none`; times are `occurred_at`.

    Of each agent in `mistrusted` what it wrote since a time (epoch seconds) is left out.
    """

    every: Sequence[Clause]
    none: Sequence[Clause] = ()
    mistrusted: Sequence[tuple[str, float]] = ()
    since: float | None = None
    until: float | None = None


class Nearest(_Part):
    """The k pieces nearest to each query; `queries` are float32 rows. `index_type` serves where not `exact`."""

    op: Literal["nearest"] = "nearest"
    selection: Selection
    queries: bytes
    k: int = Field(ge=1)
    exact: bool = True
    index_type: IndexType = "Flat"
    rebuild_threshold: int = Field(default=1000, ge=1)


class Duplicates(_Part):
    """The pairs of pieces of different memories whose cosine is at least `least`, the `most` most alike."""

    op: Literal["duplicates"] = "duplicates"
    selection: Selection
    least: float = Field(ge=0.5, le=1)
    most: int = Field(default=1000, ge=1, le=100_000)


class Clusters(_Part):
    """Parts of the selection by meaning, with the `show` pieces nearest to the middle of each."""

    op: Literal["clusters"] = "clusters"
    selection: Selection
    count: int = Field(ge=1, le=256)
    show: int = Field(default=5, ge=1, le=100)


Request = Nearest | Duplicates | Clusters
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])


class Found(_Part):
    """Pieces named by the requests' answers: `ids` and `pieces` side by side."""

    ids: list[str]
    pieces: list[int]


class NearestFound(Found):
    """For each query its pieces, as int32 places in `ids` (-1 for none), and float32 cosines; rows of length `k`."""

    k: int
    places: bytes
    scores: bytes
    exact: bool


class DuplicatesFound(Found):
    """Pairs as int32 places in `ids`, two after two, and their float32 cosines; `total` counts those left out too."""

    pairs: bytes
    scores: bytes
    total: int


class ClustersFound(Found):
    """The clusters, largest first: how many memories, how close they are, and the places in `ids` of some."""

    sizes: list[int]
    closeness: list[float]
    shown: list[list[int]]


@dataclass(frozen=True, slots=True)
class BulkAsk:
    """A request to the bulk engine about one namespace, awaited until `deadline` (epoch milliseconds).

    One read without the key that it is sealed under has no request.
    """

    id: str
    reply_to: str
    namespace: str
    model: str
    deadline: int
    request: Request | None
    seal: str = ""

    def fields(self, transports: Transports = CLEAR) -> dict[str, str | int | bytes]:
        """Give the stream entry, its body under the key that `seal` names."""
        body = pack_body(self.request) if self.request else b""
        return {
            "v": MESSAGE_VERSION,
            "id": self.id,
            "reply": self.reply_to,
            "ns": self.namespace,
            "model": self.model,
            "deadline": self.deadline,
            "seal": self.seal,
            "body": transports.seal(self.seal, body, *_place(self.id, self.reply_to, self.namespace)),
        }

    @classmethod
    def parse(cls, fields: Fields, transports: Transports = CLEAR) -> BulkAsk:
        """Read an entry.

        Raises:
            BadMessage: a field is missing or wrong, the version is unknown, or the body was altered.
        """
        try:
            if fields[b"v"] != b"%d" % MESSAGE_VERSION:
                raise BadMessage(f"version {fields[b'v']!r}")
            ask_id, reply_to, namespace, seal = (fields[name].decode() for name in (b"id", b"reply", b"ns", b"seal"))
            check_name(namespace, "namespace")
            request, body = None, fields[b"body"]
            if not seal or seal in transports:
                body = transports.open(seal, body, *_place(ask_id, reply_to, namespace))
                request = _REQUEST.validate_python(unpack(body))
            return cls(
                id=ask_id,
                reply_to=reply_to,
                namespace=namespace,
                model=fields[b"model"].decode(),
                deadline=int(fields[b"deadline"]),
                request=request,
                seal=seal,
            )
        except BadMessage:
            raise
        except Exception as error:
            raise BadMessage(f"bulk ask: {type(error).__name__}") from error


def _place(ask_id: str, reply_to: str, namespace: str) -> tuple[str, ...]:
    return "bulk", ask_id, reply_to, namespace


def pack_body(body: BaseModel) -> bytes:
    """Pack a request or what was found; bytes stay bytes."""
    return cast(bytes, msgpack.packb(body.model_dump()))


def read_body(body: bytes, kind: type[Any]) -> Any:
    """Unpack what `pack_body` packed as `kind`.

    Raises:
        BadMessage: it is not that.
    """
    try:
        return kind.model_validate(unpack(body))
    except (ValidationError, *DecodeError) as error:
        raise BadMessage(f"bulk reply: {type(error).__name__}") from error
