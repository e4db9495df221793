"""Embed jobs of sensitive memories: the text, and the lock that seals its vector, travel encrypted."""

from __future__ import annotations

from memory_core.codec import DecodeError, pack, unpack
from memory_core.errors import Tampered
from memory_core.sealed_records import Place
from memory_core.sealing import Lock, Transports
from memory_core.streams import Job


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
