"""Embed jobs of sensitive memories: the text, and the lock that seals its vector, travel encrypted."""

from __future__ import annotations

from memory_core.crypto.sealed_memory import Binding
from memory_core.crypto.sealing import Lock, Transports
from memory_core.errors import Tampered
from memory_core.records.codec import DecodeError, pack, unpack
from memory_core.store.streams import Job


def seal_job(transports: Transports, binding: Binding, text: str, lock: Lock) -> dict[str, str | bytes]:
    """Make the sealed body of an embed job: the text, and a lock that seals only its vector."""
    body = pack({"text": text, "key": lock.key_id, "lock": lock.value.hex(), "bound": lock.bound.hex()})
    seal = transports.current
    return {"seal": seal, "body": transports.seal(seal, body, *_bound_to(binding))}


def open_job(transports: Transports, namespace: str, job: Job) -> tuple[str, Lock]:
    """Return a sealed job's text and the lock for its vector. Raises Tampered if it was altered or moved."""
    binding = Binding(namespace, "", job.memory_id, job.chunk, job.rev, job.content_hash)
    try:
        opened = unpack(transports.open(job.seal, job.body, *_bound_to(binding)))
        return opened["text"], Lock(opened["key"], bytes.fromhex(opened["lock"]), bytes.fromhex(opened["bound"]))
    except (KeyError, *DecodeError):
        raise Tampered("a sealed job has an unknown form") from None


def _bound_to(binding: Binding) -> tuple[str, ...]:
    return "job", binding.namespace, binding.memory_id, str(binding.chunk), str(binding.rev), binding.content_hash
