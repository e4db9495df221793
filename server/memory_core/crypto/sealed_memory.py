"""Encrypts sensitive memories: which parts are sealed, and what each part is bound to.

Redis also stores the data key of each owner, encrypted ("wrapped") under the master key.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from memory_core.crypto.keyring import Secret, framed
from memory_core.crypto.sealing import Key, Lock, key_id
from memory_core.errors import Tampered
from memory_core.records.codec import DecodeError, pack, unpack
from memory_core.records.memory import CHUNK_REV, Record, compress, decompress
from memory_core.records.model import Model
from memory_core.records.vectors import to_float32


@dataclass(frozen=True, slots=True)
class Binding:
    """The Redis hash and content that a sealed value is bound to. Elsewhere it does not open."""

    namespace: str
    owner: str
    memory_id: str
    chunk: int
    rev: int
    content_hash: str

    @classmethod
    def of(cls, namespace: str, record: Record, chunk: int) -> Binding:
        """Return the binding of a chunk of a memory."""
        rev = CHUNK_REV if chunk else record.rev
        return cls(namespace, record.owner, record.id, chunk, rev, record.content_hash)

    def lock(self, key: Key, part: str) -> Lock:
        """Return the lock of one part: text, body or vector."""
        where = (self.namespace, self.owner, self.memory_id, str(self.chunk), str(self.rev), self.content_hash)
        return Lock.at(key, "memory", part, *where)


def keyed_hash(key: Key, content: str) -> str:
    """Hash a content with a key: 128 bits in hex."""
    return hmac.digest(key.value, framed([b"content", content.encode()]), "sha256").hex()[:32]


def seal_text(key: Key, binding: Binding, content: str, metadata: str | None = None) -> bytes:
    """Seal the text of a chunk; the first chunk has the metadata with it."""
    return binding.lock(key, "text").seal(pack({"content": content, "metadata": metadata}))


def seal_body(key: Key, binding: Binding, content: str) -> bytes:
    """Seal the compressed whole of a long content."""
    return binding.lock(key, "body").seal(compress(content))


def seal_vector(lock: Lock, model: Model, vector: bytes) -> bytes:
    """Seal a stored vector with the vector lock of its binding. One of another model does not open in its place."""
    return lock.narrowed(model.key).seal(vector)


def open_vector(key: Key, binding: Binding, sealed: bytes, model: Model) -> bytes:
    """Open a vector of either format; returns float32 bytes.

    Raises Tampered if it was altered or moved, or is not a unit vector, which Redis cannot check.
    """
    vector = to_float32(binding.lock(key, "vector").narrowed(model.key).open(sealed), model.dimension)
    if len(vector) != 4 * model.dimension or not abs(float(np.square(np.frombuffer(vector, "<f4")).sum()) - 1) < 1e-2:
        raise Tampered("a sealed vector is not a unit vector")
    return vector


def open_record(namespace: str, record: Record, find: Callable[[str], Key]) -> Record:
    """Decrypt the loaded parts of a record. `find` returns the key of an id. Raises Tampered if a part was altered."""
    sealed = record.sealed
    if sealed is None or not record.is_sensitive:
        raise Tampered("a sensitive memory is not marked as sensitive")
    head, here = Binding.of(namespace, record, 0), Binding.of(namespace, record, record.part)
    try:
        opened = unpack(head.lock(find(key_id(sealed.text)), "text").open(sealed.text))
        content: str = opened["content"]
        if sealed.chunk is not None:
            content = unpack(here.lock(find(key_id(sealed.chunk)), "text").open(sealed.chunk))["content"]
        if sealed.body is not None:
            content = decompress(head.lock(find(key_id(sealed.body)), "body").open(sealed.body))
    except DecodeError:
        raise Tampered("a sealed value has an unknown form") from None
    vector = None
    if sealed.vector is not None and sealed.model is not None:
        vector = open_vector(find(key_id(sealed.vector)), here, sealed.vector, sealed.model)
    return replace(record, content=content, metadata=opened["metadata"], vector=vector)


def wrap(master: Secret, key: Key, namespace: str, owner: str) -> bytes:
    """Encrypt a data key under a master key, bound to its owner."""
    return _wrapping(master, key.id, namespace, owner).seal(key.value)


def unwrap(find: Callable[[str], Secret], wrapped: bytes, version: str, namespace: str, owner: str) -> Key:
    """Decrypt a data key. `find` returns the master key of an id.

    Raises:
        Tampered: it was altered, or is another owner's.
        KeyMissing: this process does not have its master key.
    """
    lock = _wrapping(find(key_id(wrapped)), version, namespace, owner)
    return Key(version, lock.open(wrapped))


def _wrapping(master: Secret, version: str, namespace: str, owner: str) -> Lock:
    return Lock.at(Key.of(master, "wrap"), "data key", namespace, owner, version)
