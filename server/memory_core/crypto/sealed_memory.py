"""How a sensitive memory lies in Redis: what of it is encrypted, and what each part is bound to.

The key of an owner's memories is itself kept in Redis, encrypted ("wrapped") under the master key.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from memory_core.crypto.keyring import Secret, framed
from memory_core.crypto.sealing import Key, Lock, Transports, key_id
from memory_core.errors import Tampered
from memory_core.records.codec import DecodeError, pack, unpack
from memory_core.records.memory import Record, compress, decompress
from memory_core.records.model import Model
from memory_core.store.streams import Job

_PIECE_REV = 1
"""Revision of all further pieces: their own hash says which content they are of."""


@dataclass(frozen=True, slots=True)
class Place:
    """The hash that something belongs to, and the content that it is of. A piece of another place fails to open."""

    namespace: str
    owner: str
    memory_id: str
    piece: int
    rev: int
    content_hash: str

    @classmethod
    def of(cls, namespace: str, record: Record, piece: int) -> Place:
        """Find the place of a piece of a memory."""
        rev = _PIECE_REV if piece else record.rev
        return cls(namespace, record.owner, record.id, piece, rev, record.content_hash)

    def lock(self, key: Key, part: str) -> Lock:
        """Give the lock of one part: text, body or vector."""
        where = (self.namespace, self.owner, self.memory_id, str(self.piece), str(self.rev), self.content_hash)
        return Lock.at(key, "memory", part, *where)


def keyed_hash(key: Key, content: str) -> str:
    """Identify a content to those alone who have the key: 128 bits in hex."""
    return hmac.digest(key.value, framed([b"content", content.encode()]), "sha256").hex()[:32]


def seal_text(key: Key, place: Place, content: str, metadata: str | None = None) -> bytes:
    """Seal the text of a piece; a memory's own hash has the metadata with it."""
    return place.lock(key, "text").seal(pack({"content": content, "metadata": metadata}))


def seal_body(key: Key, place: Place, content: str) -> bytes:
    """Seal the whole of a long content, compressed."""
    return place.lock(key, "body").seal(compress(content))


def seal_vector(lock: Lock, model: Model, vector: bytes) -> bytes:
    """Seal a vector by the lock that its place has for vectors; one of another model does not open in its stead."""
    return lock.narrowed(model.field).seal(vector)


def open_vector(key: Key, place: Place, sealed: bytes, model: Model) -> bytes:
    """Open a vector and check it, since Redis never saw it.

    Raises:
        Tampered: it was altered or belongs elsewhere, or is no unit vector.
    """
    vector = place.lock(key, "vector").narrowed(model.field).open(sealed)
    if len(vector) != 4 * model.dimension or not abs(float(np.square(np.frombuffer(vector, "<f4")).sum()) - 1) < 1e-2:
        raise Tampered("a sealed vector is none")
    return vector


def open_record(namespace: str, record: Record, find: Callable[[str], Key]) -> Record:
    """Decrypt what of a sensitive record was loaded; `find` gives the key of an id.

    Raises:
        Tampered: a part was altered or moved, or its key is not there.
    """
    sealed = record.sealed
    if sealed is None or not record.is_sensitive:
        raise Tampered("a sensitive memory says that it is none")
    head, here = Place.of(namespace, record, 0), Place.of(namespace, record, record.part)
    try:
        said = unpack(head.lock(find(key_id(sealed.text)), "text").open(sealed.text))
        content: str = said["content"]
        if sealed.piece is not None:
            content = unpack(here.lock(find(key_id(sealed.piece)), "text").open(sealed.piece))["content"]
        if sealed.body is not None:
            content = decompress(head.lock(find(key_id(sealed.body)), "body").open(sealed.body))
    except DecodeError:
        raise Tampered("a sealed value is of no known form") from None
    vector = None
    if sealed.vector is not None and sealed.model is not None:
        vector = open_vector(find(key_id(sealed.vector)), here, sealed.vector, sealed.model)
    return replace(record, content=content, metadata=said["metadata"], vector=vector)


def wrap(master: Secret, key: Key, namespace: str, owner: str) -> bytes:
    """Encrypt a data key under a master key, for its owner alone."""
    return _wrapping(master, key.id, namespace, owner).seal(key.value)


def unwrap(find: Callable[[str], Secret], wrapped: bytes, version: str, namespace: str, owner: str) -> Key:
    """Decrypt a data key; `find` gives the master key of an id.

    Raises:
        Tampered: it was altered, or is another owner's. KeyMissing: its master key is not known here.
    """
    lock = _wrapping(find(key_id(wrapped)), version, namespace, owner)
    return Key(version, lock.open(wrapped))


def _wrapping(master: Secret, version: str, namespace: str, owner: str) -> Lock:
    return Lock.at(Key.of(master, "wrap"), "data key", namespace, owner, version)


def seal_job(transports: Transports, place: Place, text: str, lock: Lock) -> dict[str, str | bytes]:
    """Make the sealed body of an embed job: the text, and the lock that seals its vector alone."""
    body = pack({"text": text, "key": lock.key_id, "lock": lock.value.hex(), "bound": lock.bound.hex()})
    seal = transports.current
    return {"seal": seal, "body": transports.seal(seal, body, *_journey(place))}


def open_job(transports: Transports, namespace: str, job: Job) -> tuple[str, Lock]:
    """Give the text of a sealed embed job, and the lock for its vector.

    Raises:
        Tampered: it was altered, or is another job's.
    """
    place = Place(namespace, "", job.memory_id, job.piece, job.rev, job.content_hash)
    try:
        said = unpack(transports.open(job.seal, job.body, *_journey(place)))
        return said["text"], Lock(said["key"], bytes.fromhex(said["lock"]), bytes.fromhex(said["bound"]))
    except (KeyError, *DecodeError):
        raise Tampered("a sealed job is of no known form") from None


def _journey(place: Place) -> tuple[str, ...]:
    return "job", place.namespace, place.memory_id, str(place.piece), str(place.rev), place.content_hash
