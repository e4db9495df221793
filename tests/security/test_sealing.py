"""Sealed values open only in their own record: every change and every move is detected."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from memory_core.crypto.integrity import Integrity
from memory_core.crypto.keyring import Keyring, Secret, new_key
from memory_core.crypto.sealed_memory import (
    Binding,
    keyed_hash,
    open_record,
    open_vector,
    seal_body,
    seal_text,
    seal_vector,
    unwrap,
    wrap,
)
from memory_core.crypto.sealing import Key, Lock, Transports
from memory_core.errors import KeyMissing, Tampered
from memory_core.records.keys import Keys
from memory_core.records.memory import (
    SEALED,
    SEALED_BODY,
    SEALED_CODEC,
    MemoryType,
    Priority,
    Record,
    Visibility,
    filter_fields,
)
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix, to_bytes, to_stored
from memory_core.store.sealed_jobs import open_job, seal_job
from memory_core.store.streams import Ask, BadMessage, Job, Reply
from memory_server.index.loader import RecordReader, Ref
from memory_server.security.decrypted_vectors import OpenVectors, Which

DIMENSION = 16
CHANGES = 10_000
MODEL = Model("model", DIMENSION)
SEALED_VECTOR = MODEL.sealed_field
BOUND = ("codec", "owner", "rev", "hash", "key", SEALED, SEALED_BODY, SEALED_VECTOR)
Fields = dict[str, bytes]


@dataclass(frozen=True)
class Stored:
    """A sensitive memory as Redis holds it, with its owner's wrapped key as the field `key`."""

    memory_id: str
    namespace: str
    owner: str
    fields: Fields


class Deployment:
    """A master key and the data keys of two owners."""

    def __init__(self) -> None:
        self.keyring = Keyring([Secret(random.Random(1).randbytes(32))])
        self.keys = {"ann": Key.new(), "bea": Key.new()}
        self._unwrapped: dict[tuple[bytes, ...], Key] = {}

    def store(self, memory_id: str, content: str, *, owner: str = "ann", rev: int = 1, namespace: str = "n") -> Stored:
        """Seal a memory with long content whose first chunk is this one."""
        key = self.keys[owner]
        record = Record(
            memory_id, content, MemoryType.CONTEXT, Priority.LOW, owner, owner, Visibility.PRIVATE, frozenset(), ("t",),
            None, None, 1, None, 1.0, 1.0, 2.0, rev, MODEL.label, '{"a":1}', 2, keyed_hash(key, content),
            codec=SEALED_CODEC,
        )  # fmt: skip
        binding = Binding.of(namespace, record, 0)
        vector = np.ones(DIMENSION, dtype=np.float32) / np.sqrt(DIMENSION)
        clear = filter_fields(record) | {
            "codec": SEALED_CODEC, "hash": record.content_hash, "rev": str(rev), "model": MODEL.label, "pieces": "2",
            "expires_at": "inf",
        }  # fmt: skip
        sealed = {
            SEALED: seal_text(key, binding, content, record.metadata),
            SEALED_BODY: seal_body(key, binding, content),
            SEALED_VECTOR: seal_vector(binding.lock(key, "vector"), MODEL, to_bytes(vector)),
            "key": wrap(self.keyring.master, key, namespace, owner),
        }
        return Stored(memory_id, namespace, owner, {name: value.encode() for name, value in clear.items()} | sealed)

    def open(self, stored: Stored) -> Record:
        """Read a memory as the server does.

        Raises:
            Tampered, KeyMissing: the memory was altered.
        """
        reader = RecordReader(Keys(stored.namespace), Integrity(Keyring()), MODEL, whole=True)
        row = [stored.fields.get(name) for name in reader.head_fields]
        loaded = [found for found in reader.read([Ref(stored.memory_id)], [row]) if isinstance(found, Record)]
        if not loaded:
            raise Tampered("it cannot be read at all")

        def find(version: str) -> Key:
            owner = loaded[0].owner
            if owner not in self.keys or self.keys[owner].id != version:
                raise Tampered("no such key")
            asked = (stored.fields["key"], version.encode(), stored.namespace.encode(), owner.encode())
            if asked not in self._unwrapped:
                self._unwrapped[asked] = unwrap(self.keyring.secret, asked[0], version, stored.namespace, owner)
            return self._unwrapped[asked]

        return open_record(stored.namespace, loaded[0], find)

    def refuses(self, stored: Stored) -> bool:
        """Whether a memory is refused for the right reason."""
        try:
            self.open(stored)
        except (Tampered, KeyMissing):
            return True
        return False


@pytest.fixture
def deployment() -> Deployment:
    """Keys of one deployment."""
    return Deployment()


def changed(chance: random.Random, value: bytes, other: bytes) -> bytes | None:
    """Flip a bit, add or drop a byte, take the field of another memory, or empty the value."""
    at = chance.randrange(len(value))
    ways: list[Callable[[], bytes | None]] = [
        lambda: value[:at] + bytes([value[at] ^ 1 << chance.randrange(8)]) + value[at + 1 :],
        lambda: value[:at] + value[at + 1 :],
        lambda: value[:at] + chance.randbytes(1) + value[at:],
        lambda: value[:at],
        lambda: other,
        lambda: None,
    ]
    return chance.choice(ways)()


def test_ten_thousand_changes_to_a_sealed_memory_are_detected(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(20)
    stored = deployment.store("m1", "The code is 4711.", rev=12)
    others = [
        deployment.store("m2", "Another content.", rev=12),
        deployment.store("m1", "The code is 4711.", rev=11),
        deployment.store("m1", "The code is 4711.", owner="bea", rev=12),
        deployment.store("m1", "The code is 4711.", rev=12, namespace="m"),
    ]
    opened = deployment.open(stored)
    assert (opened.content, opened.metadata, opened.vector is not None) == ("The code is 4711.", '{"a":1}', True)
    caplog.set_level(logging.ERROR)
    tried, unseen = 0, list[tuple[str, bytes | None]]()
    while tried < CHANGES:
        name = chance.choice(BOUND)
        other = chance.choice(others[2:] if name == "key" else others)
        value = changed(chance, stored.fields[name], other.fields[name])
        if value == stored.fields[name] or (name == "key" and value is None):
            continue
        tried += 1
        altered = {field: kept for field, kept in (stored.fields | {name: value}).items() if kept is not None}
        if not deployment.refuses(replace(stored, fields=altered)):
            unseen.append((name, value))
    assert not unseen


@pytest.mark.parametrize("part", [SEALED, SEALED_BODY, SEALED_VECTOR])
def test_sealed_part_is_bound_to_memory_owner_revision_and_namespace(deployment: Deployment, part: str) -> None:
    stored = deployment.store("m1", "The code is 4711.")
    elsewhere = [
        deployment.store("m2", "The code is 4711."),
        deployment.store("m1", "The code is 4711.", rev=2),
        deployment.store("m1", "The code is 4711.", owner="bea"),
        deployment.store("m1", "The code is 4711.", namespace="m"),
        deployment.store("m1", "The code is 4712."),
    ]
    for other in elsewhere:
        assert deployment.open(other).content.startswith("The code")
        assert deployment.refuses(replace(other, fields=other.fields | {part: stored.fields[part]}))


def test_sealed_part_cannot_replace_another_part(deployment: Deployment) -> None:
    stored = deployment.store("m1", "The code is 4711.")
    for one, other in ((SEALED, SEALED_BODY), (SEALED_VECTOR, SEALED), (SEALED_BODY, SEALED_VECTOR)):
        assert deployment.refuses(replace(stored, fields=stored.fields | {one: stored.fields[other]}))


def test_scope_is_derived_from_sealed_data_not_the_stored_field(deployment: Deployment) -> None:
    stored = deployment.store("m1", "The code is 4711.")
    widened = replace(stored, fields=stored.fields | {"scope": b"pub\x1fo:eve", "visibility": b"public"})
    assert deployment.open(widened).scope == {"i:m1", "o:ann"}


def test_sealed_memory_marked_as_clear_is_refused(deployment: Deployment) -> None:
    stored = deployment.store("m1", "The code is 4711.")
    assert deployment.refuses(replace(stored, fields=stored.fields | {"codec": b"text", "content": b"forged"}))


def test_wrapped_key_opens_only_for_its_owner_and_master_key(deployment: Deployment) -> None:
    keyring, key = deployment.keyring, deployment.keys["ann"]
    wrapped = wrap(keyring.master, key, "n", "ann")
    assert unwrap(keyring.secret, wrapped, key.id, "n", "ann") == key
    for binding in ((key.id, "n", "bea"), (key.id, "m", "ann"), (deployment.keys["bea"].id, "n", "ann")):
        with pytest.raises(Tampered):
            unwrap(keyring.secret, wrapped, *binding)
    with pytest.raises(KeyMissing):
        unwrap(Keyring([Secret(random.Random(2).randbytes(32))]).secret, wrapped, key.id, "n", "ann")


def test_repr_of_key_holders_shows_no_key_or_content(deployment: Deployment) -> None:
    key = deployment.keys["ann"]
    shown = repr([key, Lock.at(key, "x"), deployment.keyring.master])
    assert not any(part in shown for part in (repr(key.value)[2:-1], key.value.hex()))


def transports() -> Transports:
    """A transport key."""
    return Transports([Secret(random.Random(3).randbytes(32))])


def test_sealed_ask_and_reply_open_only_unchanged_and_with_the_key() -> None:
    shared = transports()
    ask = Ask("a1", "rm:reply:{s}", "m", 5, ("a secret text",), shared.current)
    fields = {name.encode(): str(value).encode() if not isinstance(value, bytes) else value
              for name, value in ask.fields(shared).items()}  # fmt: skip
    assert b"secret" not in b"".join(fields.values())
    assert Ask.parse(fields, shared) == ask
    assert Ask.parse(fields).texts == ()
    for name, value in ((b"id", b"a2"), (b"reply", b"rm:reply:{t}"), (b"body", fields[b"body"][:-1] + b"\0")):
        with pytest.raises(BadMessage):
            Ask.parse(fields | {name: value}, shared)
    reply = Reply("a1", dimension=2, vectors=b"12345678", seal=shared.current)
    fields = {name.encode(): str(value).encode() if not isinstance(value, bytes) else value
              for name, value in reply.fields(shared).items()}  # fmt: skip
    assert Reply.parse(fields, shared) == reply
    for name, value in ((b"id", b"a2"), (b"dimension", b"1")):
        with pytest.raises(BadMessage):
            Reply.parse(fields | {name: value}, shared)
    with pytest.raises(BadMessage):
        Reply.parse(fields)


def test_job_seal_and_vector_lock_are_bound_to_one_chunk() -> None:
    shared, key = transports(), Key.new()
    binding = Binding("n", "ann", "m1", 0, 3, "0" * 32)
    body = seal_job(shared, binding, "a secret text", binding.lock(key, "vector"))
    assert isinstance(body["body"], bytes)
    job = Job("1-0", "m1", 3, "0" * 32, 0, "m", str(body["seal"]), body["body"])
    text, lock = open_job(shared, "n", job)
    assert text == "a secret text"
    assert binding.lock(key, "vector").open(lock.seal(b"a vector")) == b"a vector"
    with pytest.raises(Tampered):
        binding.lock(key, "text").open(lock.seal(b"a vector"))
    for other in (replace(job, memory_id="m2"), replace(job, rev=4), replace(job, chunk=1)):
        with pytest.raises(Tampered):
            open_job(shared, "n", other)
    with pytest.raises(Tampered):
        open_job(shared, "m", job)


def test_lock_of_one_kind_opens_no_value_of_another_kind() -> None:
    lock = Lock.at(Key.new(), "memory", "vector", "n")
    one, other = lock.narrowed("vec_a"), lock.narrowed("vec_b")
    assert one.open(one.seal(b"a vector")) == b"a vector"
    for wrong in (other, lock, one.narrowed("vec_a")):
        with pytest.raises(Tampered):
            wrong.open(one.seal(b"a vector"))


def test_same_content_hashes_differently_for_each_owner() -> None:
    assert len({keyed_hash(Key.new(), "the same") for _ in range(3)}) == 3
    assert len({new_key() for _ in range(3)}) == 3


@pytest.mark.parametrize("bad", [np.ones(DIMENSION), np.zeros(DIMENSION), np.eye(1, DIMENSION - 1), np.eye(1, 17)])
@pytest.mark.parametrize("half", [False, True])
def test_sealed_bytes_that_are_no_unit_vector_are_refused(bad: Matrix, half: bool) -> None:
    binding, key = Binding("n", "o", "m", 0, 1, "h"), Key.of(Secret(bytes(range(32))), "data")
    lock = binding.lock(key, "vector")
    good, stored = np.eye(1, DIMENSION, dtype=np.float32), Model("model", DIMENSION, half=half)
    sealed = seal_vector(lock, MODEL, to_stored(good, stored))
    assert open_vector(key, binding, sealed, MODEL) == open_vector(key, binding, sealed, stored) == to_bytes(good)
    with pytest.raises(Tampered):
        open_vector(key, binding, seal_vector(lock, MODEL, to_stored(bad.astype(np.float32), stored)), MODEL)


def test_vectors_evicted_from_the_open_cache_are_overwritten() -> None:
    cache = OpenVectors(most_bytes=3 * 4 * DIMENSION)
    names = [
        Which("n", owner, f"m{number}", 0, "h", "model") for number, owner in enumerate(["ann", "bea", "ann", "ann"])
    ]
    held: dict[Which, Matrix] = {}
    for name in names:
        cache.put(name, np.ones(DIMENSION, dtype=np.float32))
        held[name] = cache._held[name]  # pyright: ignore[reportPrivateUsage]
    row = np.zeros(DIMENSION, dtype=np.float32)
    assert [cache.copy(name, row) for name in names] == [False, True, True, True]
    assert row.sum() == DIMENSION
    assert cache.bytes == 3 * 4 * DIMENSION
    assert not np.any(held[names[0]])
    cache.forget("n", "ann")
    assert [bool(np.any(held[name])) for name in names] == [False, True, False, False]
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
    assert not any(np.any(vector) for vector in held.values())
