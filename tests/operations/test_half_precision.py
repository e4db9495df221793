"""New namespaces store vectors in half precision; `reindex` converts those of older releases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.embedder_fixtures import wait_until
from support.redis_users import SERVER
from support.reindex_helpers import (
    Load,
    change,
    hits,
    lacking,
    nearest,
    note_text,
    overlap,
    quiet,
    records,
    stop_after_each_write,
)
from support.stack import MASTER_KEY, Agent, Server, Stack
from support.task_helpers import submit
from support.transfer_helpers import Shell

from memory_core.records.agent import load_agents
from memory_core.records.keys import Keys
from memory_core.records.model import Model, Phase
from memory_core.records.vectors import from_stored
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.operations import reindex
from memory_server.operations.key_rotation import rotate
from memory_server.search import reports
from memory_server.service import Service

FLOAT32, HALF = Model(DEFAULT_MODEL, 384, half=False), Model(DEFAULT_MODEL, 384)
LONG = "The keeper of the lighthouse wrote down every ship. " * 60
SECRET = "The code of the safe is 4711."


async def make_older(client: Client, namespace: str) -> None:
    """Register a namespace as older releases did: with float32 vectors."""
    fields = {"model": FLOAT32.name, "dimension": FLOAT32.dimension, "field": FLOAT32.field}
    await client.hset(Keys(namespace).meta, mapping=fields)


async def fill(agent: Agent, numbers: range) -> None:
    """Store notes and wait for all their vectors."""
    operations = [{"op": "store_memory", "content": note_text(number), "visibility": "shared"} for number in numbers]
    assert (await agent.call("batch_operations", operations=operations))["succeeded"] == len(operations)
    await settled(agent)


async def settled(agent: Agent) -> None:
    """Wait until no memory waits for its vector."""

    async def is_settled() -> bool:
        return (await agent.call("memory_stats"))["vector_backlog"] == 0

    await wait_until(is_settled)


async def data_type(client: Client, namespace: str) -> str:
    """The data type of the index that answers."""
    info = await client.execute_command("FT.INFO", Keys(namespace).index_alias)
    (vector,) = (one for one in info[b"attributes"] if one[b"attribute"] == b"vec")
    return vector[b"data_type"].decode()


def vectors_in(found: dict[str, dict[bytes, bytes]], model: Model) -> dict[str, bytes]:
    """The clear vectors of a format by record."""
    return {name: row[model.field.encode()] for name, row in found.items() if model.field.encode() in row}


async def test_new_namespace_stores_and_indexes_half_precision(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    await fill(alice, range(5))
    await alice.store(LONG)
    await alice.store(SECRET, sensitive=True, wait=True)
    await settled(alice)
    found = await records(stack.client, namespace)
    vectors = vectors_in(found, HALF)
    assert {len(vector) for vector in vectors.values()} == {2 * 384}
    assert len(vectors) > 6
    assert vectors_in(found, FLOAT32) == {}
    (sealed,) = (row[HALF.sealed_field.encode()] for row in found.values() if HALF.sealed_field.encode() in row)
    assert 2 * 384 < len(sealed) < 3 * 384
    assert await data_type(stack.client, namespace) == "FLOAT16"
    assert await alice.search(note_text(3), mode="vector", limit=1) == [note_text(3)]
    assert (await reindex.look(server.service, namespace)).drift == []


@pytest.mark.long
async def test_older_namespace_keeps_float32_until_reindex_converts_it(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    service, keys, client = server.service, Keys(namespace), stack.client
    await make_older(client, namespace)
    await fill(alice, range(40))
    await alice.store(LONG)
    await alice.store(SECRET, sensitive=True, wait=True)
    await settled(alice)
    before = await records(client, namespace)
    assert await data_type(client, namespace) == "FLOAT32"
    assert vectors_in(before, HALF) == {}
    drift = (await reindex.look(service, namespace)).drift
    assert drift == ["vec has field vec_minilm_l6_v2 instead of vec16_minilm_l6_v2"]
    assert "float16" in await reindex.would(service, namespace, None, back=False, drop_old=False)
    jobs = await client.xinfo_stream(keys.jobs(DEFAULT_MODEL))
    numbers = list(range(40))
    near = await nearest(alice, numbers)

    done = await change(service, namespace)

    assert (done.asked, done.failed, done.done) == (0, 0, "float16 vectors answer")
    assert (await client.xinfo_stream(keys.jobs(DEFAULT_MODEL)))["entries-added"] == jobs["entries-added"]
    after = await records(client, namespace)
    old = vectors_in(before, FLOAT32)
    converted = {name: np.frombuffer(vector, "<f4").astype("<f2").tobytes() for name, vector in old.items()}
    assert vectors_in(after, HALF) == converted
    assert await data_type(client, namespace) == "FLOAT16"
    status = await reindex.look(service, namespace)
    assert (status.phase, status.drift) == (Phase.SWITCHED, [])
    assert status.answers.embedded == status.pieces
    again = await nearest(alice, numbers)
    assert hits(numbers, again) == hits(numbers, near)
    assert overlap(near, again) > 0.97
    assert (await alice.search("What opens the safe?", mode="vector"))[0] == SECRET

    await reindex.drop(service, namespace, quiet, keep_seconds=1.1)
    last = await records(client, namespace)
    assert vectors_in(last, FLOAT32) == {}
    assert {row[b"model"] for row in last.values()} == {HALF.label.encode()}
    assert (await alice.search("What opens the safe?", mode="vector"))[0] == SECRET
    assert await alice.search(note_text(9), mode="vector", limit=1) == [note_text(9)]
    indexes = {name.decode() for name in await client.execute_command("FT._LIST") if namespace in name.decode()}
    assert indexes == {keys.index(2), keys.task_index(HALF.field)}


@pytest.mark.long
async def test_conversion_under_load_fails_no_search(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    await make_older(stack.client, namespace)
    await fill(alice, range(60))
    numbers = list(range(0, 60, 7))
    async with Load(stack, namespace, numbers).running() as load:
        await change(server.service, namespace)
        searched = load.searches

        async def goes_on() -> bool:
            return load.searches > searched + 10

        await wait_until(goes_on)
    assert load.failures == []
    assert len(load.stored) > 10
    await settled(alice)
    assert await lacking(stack.client, namespace, HALF) == []
    for number in list(load.stored.values())[:: max(1, len(load.stored) // 10)]:
        assert await alice.search(note_text(number), mode="vector", limit=1) == [note_text(number)]


@pytest.mark.long
async def test_conversion_can_be_reverted_and_repeated(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    service, client = server.service, stack.client
    await make_older(client, namespace)
    await fill(alice, range(10))
    await change(service, namespace)
    late = await alice.store("The ferry leaves at noon.", wait=True)
    changed = await alice.store("The mill is closed.", wait=True)
    await alice.call("update_memory", memory_id=changed, content="The mill is open again.")
    await settled(alice)
    assert late

    await reindex.back(service, namespace, quiet)
    assert (await service.models.get(namespace, afresh=True)).current == FLOAT32
    assert await data_type(client, namespace) == "FLOAT32"
    assert await lacking(client, namespace, FLOAT32) == []
    assert (await alice.search("when does the ferry leave?", mode="vector"))[0] == "The ferry leaves at noon."
    assert (await alice.search("Is the mill open?", mode="vector"))[0] == "The mill is open again."

    assert (await reindex.back(service, namespace, quiet)).done.endswith("float32 answers again already")
    assert "already" in await reindex.would(service, namespace, None, back=True, drop_old=False)
    assert "goes forward again" in (await reindex.look(service, namespace)).next
    await change(service, namespace)
    assert (await service.models.get(namespace, afresh=True)).current.half
    assert (await alice.search("Is the mill open?", mode="vector"))[0] == "The mill is open again."
    await reindex.drop(service, namespace, quiet, keep_seconds=1.1)
    found = await records(client, namespace)
    assert (vectors_in(found, FLOAT32), len(vectors_in(found, HALF))) == ({}, 12)


async def test_conversion_stopped_after_any_write_completes_when_rerun(
    stack: Stack, server: Server, alice: Agent, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_older(stack.client, namespace)
    await fill(alice, range(9))
    monkeypatch.setattr(reindex, "MODELS_SECONDS", 0.0)
    settings = Settings.load(redis_url=stack.redis.url_of(SERVER), master_key=MASTER_KEY)
    async with Service(settings).running() as service:

        async def finds() -> None:
            assert await alice.search(note_text(2), mode="vector", limit=1) == [note_text(2)]

        steps = (
            (lambda: change(service, namespace), True),
            (lambda: reindex.back(service, namespace, quiet), False),
            (lambda: change(service, namespace), True),
            (lambda: reindex.drop(service, namespace, quiet, keep_seconds=0), True),
        )
        for number, (step, half) in enumerate(steps):
            # The old index is dropped at the end without the delay that searches need.
            assert await stop_after_each_write(service, step, finds if number < 3 else None) >= 2
            assert (await service.models.get(namespace, afresh=True)).current.half is half
        models = await service.models.get(namespace, afresh=True)
    assert (models.current.half, models.other) == (True, None)
    await server.service.models.get(namespace, afresh=True)  # skip the one-second cache
    found = await records(stack.client, namespace)
    assert (vectors_in(found, FLOAT32), len(vectors_in(found, HALF))) == ({}, 9)
    assert await alice.search(note_text(2), mode="vector", limit=1) == [note_text(2)]


async def test_damaged_vector_is_embedded_again_by_the_conversion(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    await make_older(stack.client, namespace)
    await fill(alice, range(3))
    damaged = await alice.store("The ferry leaves at noon.", wait=True)
    await stack.client.hset(Keys(namespace).memory(damaged), FLOAT32.field, np.full(384, np.nan, "<f4").tobytes())
    done = await change(server.service, namespace)
    assert done.asked == 1
    vector = await stack.client.hget(Keys(namespace).memory(damaged), HALF.field)
    assert np.linalg.norm(from_stored(vector, 384)) == pytest.approx(1, abs=1e-2)
    assert (await alice.search("when does the ferry leave?", mode="vector"))[0] == "The ferry leaves at noon."


async def test_rotation_of_a_data_key_keeps_sealed_vectors_in_half_precision(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    memory_id = await alice.store(SECRET, sensitive=True, wait=True)
    await alice.store(LONG, sensitive=True)
    await settled(alice)

    async def lengths() -> set[int]:
        found = (await records(stack.client, namespace)).values()
        return {len(row[HALF.sealed_field.encode()]) for row in found}

    before = await lengths()
    owner = await stack.client.hget(Keys(namespace).memory(memory_id), "owner")
    done = await rotate(server.service, namespace, owner.decode())
    await settled(alice)
    assert done.resealed == 2
    assert await lengths() == before
    assert len(before) == 1
    assert (await alice.search("What opens the safe?", mode="vector"))[0] == SECRET


async def test_tasks_and_agents_keep_their_vectors_in_the_other_format(
    stack: Stack, server: Server, alice: Agent, bob: Agent, namespace: str
) -> None:
    service, keys = server.service, Keys(namespace)
    await make_older(stack.client, namespace)
    await bob.call("register_agent", description="I repair sails and ropes.")
    task = await submit(alice, "Mend the torn sail.", required_capabilities=["nobody can"])
    stored = await stack.client.hget(keys.task_vector(task), FLOAT32.field)
    await change(service, namespace)
    again = await alice.call(
        "distribute_task", description="Mend the sail that is torn.", required_capabilities=["nobody"]
    )
    assert [one["task_id"] for one in again["similar_tasks"]] == [task]
    converted = await stack.client.hget(keys.task_vector(task), HALF.field)
    assert converted == np.frombuffer(stored, "<f4").astype("<f2").tobytes()
    model = await service.models.current(namespace)
    (known,) = [one for one in await load_agents(stack.client, keys, model=model) if one.name == "bob"]
    assert known.vectors is not None
    assert known.vectors.shape == (1, 384)


async def test_bulk_engine_follows_a_change_of_format(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    await make_older(stack.client, namespace)
    await fill(alice, range(10))
    await alice.store(note_text(3) + "!", visibility="shared", wait=True)
    request = RequestContext(Caller(namespace, "alice"))
    await wait_until(lambda: server.service.bulk.is_offered(HALF))

    async def pairs() -> list[float]:
        found = await reports.near_duplicates(server.service, request, least=0.95, wait=20.0)
        return [group.cosine for group in found.groups]

    before = await pairs()
    assert before
    await change(server.service, namespace)
    await reindex.drop(server.service, namespace, quiet, keep_seconds=1.1)
    assert await pairs() == pytest.approx(before, abs=1e-3)


async def test_export_of_float32_imports_into_half_precision_and_back(
    stack: Stack, server: Server, alice: Agent, namespace: str, tmp_path: Path
) -> None:
    shell = Shell(stack.redis.url_of(SERVER))
    await make_older(stack.client, namespace)
    await alice.call("register_agent", description="I keep notes.")
    await fill(alice, range(6))
    await alice.store(SECRET, sensitive=True, wait=True)
    half, older = f"{namespace}-half", f"{namespace}-older"
    await make_older(stack.client, older)
    first, second, third = (tmp_path / f"{number}.jsonl" for number in range(3))
    await shell.done("export", first, "--namespace", namespace)
    assert (await shell.done("import", first, "--namespace", half))["memories"] == {"new": 7}
    await shell.done("export", second, "--namespace", half)
    assert (await shell.done("import", second, "--namespace", older))["memories"] == {"new": 7}
    await shell.done("export", third, "--namespace", older)
    assert second.read_bytes() == third.read_bytes()
    for name, model in ((half, HALF), (older, FLOAT32)):
        found = await records(stack.client, name)
        assert {len(vector) for vector in vectors_in(found, model).values()} == {model.vector_bytes}
        assert await lacking(stack.client, name, model) == []
        assert not await stack.client.xlen(Keys(name).jobs(DEFAULT_MODEL))
        async with server.agent("alice", name) as reader:
            assert await reader.search(note_text(4), mode="vector", limit=1) == [note_text(4)]
            assert (await reader.search("What opens the safe?", mode="vector"))[0] == SECRET
