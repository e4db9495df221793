"""Requests to the bulk engine and their results, as in `schemas/bulk.json` and `schemas/reply.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import msgpack
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from memory_core.crypto.sealing import Transports
from memory_core.records.codec import DecodeError, unpack
from memory_core.records.names import check_name
from memory_core.store.streams import CLEAR, MESSAGE_VERSION, BadMessage, Fields, check_version

Clause = tuple[str, Sequence[str]]
"""A field and values: a record must have one of them. `id` and `scope` are fields too."""
IndexType = Literal["Flat", "IVFFlat", "HNSW", "CAGRA"]
MOST_QUERIES = 1024
MOST_RESULTS = 1 << 18  # most neighbours of all queries of one request together


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Selection(_Part):
    """The chunks to compare with: all clauses of `every` match, and none of `none`; times are `occurred_at`.

    `mistrusted` leaves out what an agent wrote since a time (epoch seconds).
    """

    every: Sequence[Clause]
    none: Sequence[Clause] = ()
    mistrusted: Sequence[tuple[str, float]] = ()
    since: float | None = None
    until: float | None = None


class Nearest(_Part):
    """The k chunks nearest to each query. `queries` are float32 rows; `index_type` counts only if not `exact`."""

    op: Literal["nearest"] = "nearest"
    selection: Selection
    queries: bytes
    k: int = Field(ge=1)
    exact: bool = True
    index_type: IndexType = "Flat"
    rebuild_threshold: int = Field(default=1000, ge=1)


class Duplicates(_Part):
    """The `most` closest pairs of chunks of different memories whose cosine is at least `least`."""

    op: Literal["duplicates"] = "duplicates"
    selection: Selection
    least: float = Field(ge=0.5, le=1)
    most: int = Field(default=1000, ge=1, le=100_000)


class Clusters(_Part):
    """Clusters of the selection, with the `show` chunks nearest to the centre of each."""

    op: Literal["clusters"] = "clusters"
    selection: Selection
    count: int = Field(ge=1, le=256)
    show: int = Field(default=5, ge=1, le=100)


Request = Nearest | Duplicates | Clusters
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])


class Found(_Part):
    """The chunks of a result: memory ids and, in parallel, chunk numbers."""

    ids: list[str]
    pieces: list[int]


class NearestFound(Found):
    """For each query, `k` int32 indices into `ids` (-1 for none) and `k` float32 cosines."""

    k: int
    places: bytes
    scores: bytes
    exact: bool


class DuplicatesFound(Found):
    """Pairs of int32 indices into `ids` and their float32 cosines; `total` includes pairs left out."""

    pairs: bytes
    scores: bytes
    total: int


class ClustersFound(Found):
    """The clusters, largest first: number of memories, closeness, and indices into `ids` of examples."""

    sizes: list[int]
    closeness: list[float]
    shown: list[list[int]]


@dataclass(frozen=True, slots=True)
class BulkAsk:
    """A request about one namespace; the server waits until `deadline` (epoch milliseconds).

    `request` is None if the reader lacks the transport key.
    """

    id: str
    reply_to: str
    namespace: str
    model: str
    deadline: int
    request: Request | None
    seal: str = ""

    def fields(self, transports: Transports = CLEAR) -> dict[str, str | int | bytes]:
        """Return the stream entry. Its body is encrypted under the key `seal`."""
        body = pack_body(self.request) if self.request else b""
        return {
            "v": MESSAGE_VERSION,
            "id": self.id,
            "reply": self.reply_to,
            "ns": self.namespace,
            "model": self.model,
            "deadline": self.deadline,
            "seal": self.seal,
            "body": transports.seal(self.seal, body, *_bound_to(self.id, self.reply_to, self.namespace)),
        }

    @classmethod
    def parse(cls, fields: Fields, transports: Transports = CLEAR) -> BulkAsk:
        """Parse an entry. Raises BadMessage if it is malformed or was altered."""
        try:
            check_version(fields)
            ask_id, reply_to, namespace, seal = (fields[name].decode() for name in (b"id", b"reply", b"ns", b"seal"))
            check_name(namespace, "namespace")
            request, body = None, fields[b"body"]
            if not seal or seal in transports:
                body = transports.open(seal, body, *_bound_to(ask_id, reply_to, namespace))
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
        except Exception as error:
            raise BadMessage(f"bulk ask: {type(error).__name__}") from error


def _bound_to(ask_id: str, reply_to: str, namespace: str) -> tuple[str, ...]:
    return "bulk", ask_id, reply_to, namespace


def pack_body(body: BaseModel) -> bytes:
    """Pack a request or a result; bytes stay bytes."""
    return cast(bytes, msgpack.packb(body.model_dump()))


def read_body(body: bytes, kind: type[Any]) -> Any:
    """Unpack the output of `pack_body` as `kind`. Raises BadMessage if it does not fit."""
    try:
        return kind.model_validate(unpack(body))
    except (ValidationError, *DecodeError) as error:
        raise BadMessage(f"bulk reply: {type(error).__name__}") from error
