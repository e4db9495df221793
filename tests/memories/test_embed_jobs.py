"""Embed jobs: a vector is that of its text, lost jobs are queued again, and texts that failed are left."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from support.embedder_fixtures import wait_until
from support.long_content import prose, settled
from support.reindex_helpers import change, quiet
from support.stack import Agent, Refused, Server, Stack

from memory_core.errors import EmbeddingUnavailable
from memory_core.records.keys import GROUP, Keys
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.vectors import from_bytes
from memory_core.store import functions
from memory_core.store.streams import RELEASED_MS
from memory_server.engine.request_context import Caller
from memory_server.index import loader
from memory_server.index.loader import Ref
from memory_server.memories.record_encoder import embedding_text
from memory_server.operations import embed_jobs, reembed
from memory_server.operations.health.records import RecordProblem, RecordScan
from memory_server.operations.sweeper import sweep
from memory_server.service import Service

MODEL = Model("all-MiniLM-L6-v2", 384)
OLD, NEW = "The barge is moored at the north quay.", "Wheat prices fell sharply in the autumn."
LONG_OLD, LONG_NEW = prose(120) + OLD, NEW + " " + prose(150)


@contextmanager
def paused(stack: Stack) -> Generator[None]:
    """Stop the sidecar meanwhile."""
    assert stack.sidecar.process
    stack.sidecar.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        stack.sidecar.process.send_signal(signal.SIGCONT)


async def load(service: Service, namespace: str, refs: list[Ref]) -> list[Record]:
    """Load and open chunks with their vectors."""
    keys, integrity = Keys(namespace), service.backend.integrity
    found = await service.backend.read(lambda client: loader.load(client, keys, refs, integrity, model=MODEL))
    return (await service.vault.open_all(namespace, found)).records


async def all_chunks(service: Service, namespace: str, memory_id: str) -> list[Record]:
    [head] = await load(service, namespace, [Ref(memory_id)])
    return await load(service, namespace, [Ref(memory_id, number) for number in range(head.chunks)])


async def lose_vectors(stack: Stack, namespace: str, memory_id: str, *numbers: int) -> None:
    """Take the vectors of chunks away, as if their jobs had been lost."""
    for number in numbers:
        name = Keys(namespace).hash_of_chunk(memory_id, number)
        await stack.client.hdel(name, MODEL.field, MODEL.sealed_field)
        await stack.client.hset(name, "model", f"none:{MODEL.label}")


async def wrong_vectors(service: Service, namespace: str, memory_id: str) -> list[Ref]:
    """Return the chunks whose vector is not that of their text."""
    chunks = await all_chunks(service, namespace, memory_id)
    texts = [embedding_text(one.content, one.source) for one in chunks]
    expected = [
        await service.embeddings.embed([text], Caller(namespace, "alice"), model=MODEL, secret=True) for text in texts
    ]
    return [
        Ref(one.id, one.part)
        for one, vector in zip(chunks, expected, strict=True)
        if one.vector is None or float(from_bytes(one.vector, MODEL.dimension)[0] @ vector[0]) < 0.99
    ]


def no_answer(*_: Any, **__: Any) -> Any:
    raise EmbeddingUnavailable("no sidecar answered", hint="", retry_after=1.0)


@pytest.mark.parametrize(
    ("old", "new", "chunk", "sensitive"),
    [(OLD, NEW, 0, False), (OLD, NEW, 0, True), (LONG_OLD, LONG_NEW, 1, False), (LONG_OLD, LONG_NEW, 1, True)],
    ids=["memory", "sensitive memory", "chunk", "sensitive chunk"],
)
async def test_text_read_before_an_update_is_not_queued_for_its_vector(
    stack: Stack,
    server: Server,
    alice: Agent,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    new: str,
    chunk: int,
    sensitive: bool,
) -> None:
    service = server.service
    memory_id = await alice.store(old, sensitive=sensitive, wait=True)
    await wait_until(lambda: settled(alice))
    await lose_vectors(stack, namespace, memory_id, chunk)
    read = await load(service, namespace, [Ref(memory_id, chunk)])
    with paused(stack):
        monkeypatch.setattr(type(service.embeddings), "embed", no_answer)
        await alice.call("update_memory", memory_id=memory_id, content=new)
        monkeypatch.undo()
        assert await embed_jobs.queue_jobs(service, namespace, read, MODEL) == 0
    await wait_until(lambda: settled(alice))
    assert await wrong_vectors(service, namespace, memory_id) == []


async def test_unchanged_texts_are_queued_again_head_and_chunks(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    service, memory_id = server.service, await alice.store(LONG_OLD, sensitive=True)
    await wait_until(lambda: settled(alice))
    await lose_vectors(stack, namespace, memory_id, 0, 1, 2)
    await sweep(service, patience=0)
    await wait_until(lambda: settled(alice))
    assert await wrong_vectors(service, namespace, memory_id) == []


async def bury(stack: Stack, namespace: str, memory_id: str, chunk: int = 0, **other: Any) -> None:
    """Bury a job of a chunk without vector, as a sidecar does after its last delivery."""
    keys = Keys(namespace)
    await lose_vectors(stack, namespace, memory_id, chunk)
    name = keys.hash_of_chunk(memory_id, chunk)
    rev, content = (value.decode() for value in await stack.client.hmget(name, ["rev", "hash"]))
    job: dict[str, Any] = {"id": memory_id, "rev": int(rev), "hash": content, "model": MODEL.name} | other
    names = [keys.jobs(MODEL.name), keys.dead_jobs, name]
    await functions.call(stack.client, "rm1_bury", names, group=GROUP, entry="0-1", error="x", **job)


async def state(stack: Stack, namespace: str, memory_id: str, chunk: int = 0) -> str:
    return (await stack.client.hget(Keys(namespace).hash_of_chunk(memory_id, chunk), "model")).decode()


async def test_failed_text_is_left_by_recovery_and_reported(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    memory_id = await alice.store(OLD, wait=True)
    await bury(stack, namespace, memory_id)
    await sweep(server.service, patience=0)
    assert await stack.client.xlen(Keys(namespace).jobs(MODEL.name)) == 0
    assert await state(stack, namespace, memory_id) == f"failed:{MODEL.label}"

    answer = await alice.call("semantic_search", query="barge")
    assert answer["hits"][0]["memory"]["vector"] == "failed"
    assert "1 text could not be embedded and was searched by words only" in answer["reason"]
    assert "reason" not in await alice.call("semantic_search", query="barge", mode="keyword")
    stats = await alice.call("memory_stats")
    assert (stats["vectors_failed"], stats["vector_backlog"]) == (1, 0)
    keys = Keys(namespace)
    scan = RecordScan(stack.client, keys, server.service.settings, MODEL)
    assert await scan.problems([keys.memory(memory_id)]) == {keys.memory(memory_id): RecordProblem.FAILED}
    with pytest.raises(Refused, match="could not be embedded"):
        await alice.call("find_similar_memories", memory_id=memory_id)
    await stack.client.delete(Keys(namespace).dead_jobs)


Again = Callable[[Service, Agent, str, str], Awaitable[Any]]


async def update_metadata(_: Service, alice: Agent, __: str, memory_id: str) -> None:
    await alice.call("update_memory", memory_id=memory_id, metadata={"a": 1})


async def update_content(_: Service, alice: Agent, __: str, memory_id: str) -> None:
    await alice.call("update_memory", memory_id=memory_id, content=LONG_NEW)


async def rebuild_index(service: Service, _: Agent, namespace: str, __: str) -> None:
    await change(service, namespace)


@pytest.mark.parametrize("again", [update_metadata, update_content, rebuild_index])
async def test_update_or_reindex_embeds_failed_texts_again(
    stack: Stack, server: Server, alice: Agent, namespace: str, again: Again
) -> None:
    memory_id = await alice.store(LONG_OLD)
    await wait_until(lambda: settled(alice))
    for chunk in (0, 1):
        await bury(stack, namespace, memory_id, chunk)
    await again(server.service, alice, namespace, memory_id)

    async def is_embedded() -> bool:
        chunks = await all_chunks(server.service, namespace, memory_id)
        return all(MODEL.is_ready(one.state) for one in chunks)

    await wait_until(is_embedded)
    assert await wrong_vectors(server.service, namespace, memory_id) == []
    await stack.client.delete(Keys(namespace).dead_jobs)


@pytest.mark.parametrize("other", [{"rev": 7}, {"hash": "0" * 32}, {"model": "another"}])
async def test_late_bury_of_another_revision_or_model_marks_nothing(
    stack: Stack, alice: Agent, namespace: str, other: dict[str, Any]
) -> None:
    memory_id = await alice.store(OLD, wait=True)
    await bury(stack, namespace, memory_id, **other)
    assert await state(stack, namespace, memory_id) == f"none:{MODEL.label}"
    await stack.client.delete(Keys(namespace).dead_jobs)


async def test_commit_after_a_bury_ends_the_failure(stack: Stack, alice: Agent, namespace: str) -> None:
    memory_id, keys = await alice.store(OLD, wait=True), Keys(namespace)
    await bury(stack, namespace, memory_id)
    rev, content = await stack.client.hmget(keys.memory(memory_id), ["rev", "hash"])
    vector = np.eye(1, MODEL.dimension, dtype=np.float32)[0].tobytes()
    item = {"id": memory_id, "piece": 0, "rev": int(rev), "hash": content.decode(), "entry": "0-1", "bytes": vector}
    names = [keys.jobs(MODEL.name), keys.events, keys.memory(memory_id)]
    items = [item | {"dimension": MODEL.dimension}]
    await functions.call(stack.client, "rm1_commit", names, items=items, model=MODEL.name, group=GROUP)
    assert await state(stack, namespace, memory_id) == MODEL.label
    await stack.client.delete(keys.dead_jobs)


def job(**other: Any) -> dict[str, Any]:
    """Fields of a job. Its memory does not exist."""
    whole = {"v": 1, "id": "m", "rev": 1, "hash": "h", "piece": 0, "model": MODEL.name, "seal": "", "body": "a text"}
    return whole | other


async def sealed_elsewhere(stack: Stack, stream: str) -> None:
    await stack.client.xadd(stream, job(seal="0123456789abcdef"))


async def forgotten_by_its_group(stack: Stack, stream: str) -> None:
    with paused(stack):
        await stack.client.xadd(stream, job())
        await stack.client.xreadgroup(GROUP, "dead", {stream: ">"})
        await stack.client.xgroup_delconsumer(stream, GROUP, "dead")


async def acknowledged_but_there(stack: Stack, stream: str) -> None:
    with paused(stack):
        entry = await stack.client.xadd(stream, job())
        await stack.client.xreadgroup(GROUP, "dead", {stream: ">"})
        await stack.client.xack(stream, GROUP, entry)


@pytest.mark.parametrize("bad", [sealed_elsewhere, forgotten_by_its_group, acknowledged_but_there])
async def test_bad_job_does_not_stop_recovery_of_other_texts(
    stack: Stack, server: Server, alice: Agent, namespace: str, bad: Callable[[Stack, str], Awaitable[None]]
) -> None:
    memory_id, stream = await alice.store(OLD, wait=True), Keys(namespace).jobs(MODEL.name)
    await bad(stack, stream)
    await lose_vectors(stack, namespace, memory_id, 0)

    async def is_recovered() -> bool:
        await sweep(server.service, patience=0)
        return await state(stack, namespace, memory_id) == MODEL.label and not await stack.client.xlen(stream)

    await wait_until(is_recovered)


async def test_job_sealed_under_a_retired_key_is_replaced(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    memory_id, keys = await alice.store(OLD, sensitive=True, wait=True), Keys(namespace)
    rev, content = await stack.client.hmget(keys.memory(memory_id), ["rev", "hash"])
    await lose_vectors(stack, namespace, memory_id, 0)
    await stack.client.xadd(
        keys.jobs(MODEL.name), job(id=memory_id, rev=rev, hash=content, seal="0123456789abcdef", body=b"\x00sealed")
    )

    async def is_recovered() -> bool:
        await sweep(server.service, patience=0)
        return await state(stack, namespace, memory_id) == MODEL.label

    await wait_until(is_recovered)
    assert await wrong_vectors(server.service, namespace, memory_id) == []


async def test_text_whose_job_still_waits_gets_no_second_one(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    keys, service = Keys(namespace), server.service
    waiting, lost = [await alice.store(text, wait=True) for text in (OLD, NEW)]
    with paused(stack):
        await lose_vectors(stack, namespace, waiting, 0)
        await embed_jobs.queue_jobs(service, namespace, await load(service, namespace, [Ref(waiting)]), MODEL)
        await stack.client.xreadgroup(GROUP, "dead", {keys.jobs(MODEL.name): ">"})
        pending = await stack.client.xpending_range(keys.jobs(MODEL.name), GROUP, "-", "+", 10)
        entries = [one["message_id"] for one in pending]
        await stack.client.xclaim(keys.jobs(MODEL.name), GROUP, "dead", 0, entries, idle=RELEASED_MS, justid=True)
        await lose_vectors(stack, namespace, lost, 0)
        for _ in range(3):
            await sweep(service, patience=0)
        rows = await stack.client.xrange(keys.jobs(MODEL.name))
        assert [fields[b"id"].decode() for _, fields in rows] == [waiting, lost]
    await wait_until(lambda: settled(alice))


async def test_reindex_does_not_wait_for_a_job_that_no_sidecar_takes(
    stack: Stack, server: Server, alice: Agent, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_id = await alice.store(OLD, wait=True)
    await sealed_elsewhere(stack, Keys(namespace).jobs(MODEL.name))
    await lose_vectors(stack, namespace, memory_id, 0)
    monkeypatch.setattr(reembed, "_PATIENCE_SECONDS", 0.5)
    async with asyncio.timeout(15):
        filling = await reembed.Filling(server.service, namespace, MODEL, quiet).run()
    assert filling.failed == []
    assert await wrong_vectors(server.service, namespace, memory_id) == []
    await stack.client.delete(Keys(namespace).jobs(MODEL.name))
    await stack.client.xgroup_create(Keys(namespace).jobs(MODEL.name), GROUP, id="0", mkstream=True)
