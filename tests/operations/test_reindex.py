"""The model of a namespace changes while a team works: no search fails, nothing is lost."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
import pytest_asyncio
from redis.commands.search.index_definition import IndexDefinition
from support.embedder_fixtures import running, wait_until
from support.redis_users import SERVER, SIDECAR
from support.reindex_helpers import (
    NEW,
    OLD,
    Load,
    change,
    hits,
    lacking,
    nearest,
    note_text,
    overlap,
    quiet,
    records,
    sidecar_of,
    start_command,
    stop_after_each_write,
    transports,
    twin,
)
from support.sharing_helpers import register
from support.shell import Shell
from support.stack import MASTER_KEY, Agent, Server, SidecarProcess, Stack
from support.task_helpers import submit

from memory_core.errors import Conflict, EmbeddingUnavailable, InvalidArgument
from memory_core.records.keys import Keys
from memory_core.records.model import Model, Models, Phase, read_models
from memory_core.settings.settings import Settings
from memory_core.store import index
from memory_embedder.engines.fake import FakeEncoder
from memory_embedder.sidecar import SidecarOptions
from memory_server.engine import known_models
from memory_server.engine.index_definition import DriftWarnings
from memory_server.operations import reindex
from memory_server.service import Service

LONG = "The keeper of the lighthouse wrote down every ship. " * 60
SECOND_SIDECAR = SidecarOptions(lease=0.3, scan=0.2, heartbeat=0.1, block=0.1, standby=True)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def second_sidecar(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[SidecarProcess]:
    """A sidecar of the second model, in addition to the stack's sidecar."""
    async with sidecar_of(stack, str(twin(tmp_path_factory.mktemp("weights"))), NEW.name) as sidecar:
        yield sidecar


async def fill(agent: Agent, numbers: range) -> None:
    """Store notes and wait for all their vectors."""
    for start in range(numbers.start, numbers.stop, 100):
        part = range(start, min(start + 100, numbers.stop))
        operations = [{"op": "store_memory", "content": note_text(number), "visibility": "shared"} for number in part]
        assert (await agent.call("batch_operations", operations=operations))["succeeded"] == len(part)
    await settled(agent)


async def settled(agent: Agent) -> None:
    """Wait until no memory waits for its vector."""

    async def is_settled() -> bool:
        return (await agent.call("memory_stats"))["vector_backlog"] == 0

    await wait_until(is_settled)


@pytest.mark.long
async def test_change_killed_under_load_fails_no_search_and_loses_nothing(
    stack: Stack, second_sidecar: SidecarProcess, alice: Agent, namespace: str
) -> None:
    await fill(alice, range(150))
    secret = await alice.store("The code of the safe is 4711.", sensitive=True, wait=True)
    await alice.store(LONG)
    await settled(alice)
    numbers, keys = list(range(0, 150, 7)), Keys(namespace)
    before = await nearest(alice, numbers)

    async with Load(stack, namespace, numbers).running() as load:
        assert second_sidecar.process
        second_sidecar.process.send_signal(signal.SIGSTOP)
        first = await start_command(stack, namespace, "--model", NEW.name)
        await wait_until(lambda: stack.client.xlen(keys.jobs(NEW.name)))
        first.kill()
        await first.wait()
        second_sidecar.process.send_signal(signal.SIGCONT)
        models = await read_models(stack.client, keys)
        assert models
        assert (models.current, models.phase) == (OLD, Phase.BUILDING), (
            "the kill came after the switch, so it tests nothing"
        )
        second = await start_command(stack, namespace)
        stdout, stderr = await second.communicate()
        assert second.returncode == 0, stderr.decode()
        searched = load.searches
        await wait_until(lambda: further(load, searched + 10))

    assert load.failures == []
    assert json.loads(stdout)["model"] == NEW.name
    await settled(alice)
    assert await lacking(stack.client, namespace, NEW) == []
    assert (await alice.call("memory_stats"))["index"]["model"] == NEW.name
    assert (await alice.search("What opens the safe?", mode="vector"))[0] == "The code of the safe is 4711."
    assert (await alice.call("retrieve_memory", memory_id=secret))["memory"]["vector"] == "ready"
    assert [LONG[:20] in text for text in await alice.search("who kept the lighthouse", mode="vector", limit=1)] == [
        True
    ]
    kept = await records(stack.client, namespace)
    contents = {memory_id: kept[keys.memory(memory_id)][b"content"].decode() for memory_id in load.stored}
    assert contents == {memory_id: note_text(number) for memory_id, number in load.stored.items()}
    assert len(load.stored) > 20
    await alice.call("clear_memory", memory_ids=list(load.stored)[:100], confirm=True)
    await alice.call("clear_memory", memory_ids=list(load.stored)[100:] or [secret], confirm=True)
    after = await nearest(alice, numbers)
    assert hits(numbers, after) == hits(numbers, before) == len(numbers)
    assert overlap(before, after) > 0.9


async def further(load: Load, searches: int) -> bool:
    return load.searches >= searches


@pytest.mark.long
async def test_change_can_be_reverted_and_drop_leaves_nothing(
    stack: Stack, server: Server, second_sidecar: SidecarProcess, alice: Agent, namespace: str
) -> None:
    service, keys = server.service, Keys(namespace)
    await fill(alice, range(20))
    await change(service, namespace, NEW.name)
    late = await alice.store("The ferry leaves at noon.", wait=True)
    assert await lacking(stack.client, namespace, OLD) == [keys.memory(late)], (
        "the old model must not receive jobs after the switch"
    )

    await reindex.back(service, namespace, quiet)
    assert (await service.models.get(namespace, afresh=True)).current == OLD
    assert await lacking(stack.client, namespace, OLD) == []
    assert (await alice.search("when does the ferry leave?", mode="vector"))[0] == "The ferry leaves at noon."
    assert (await reindex.back(service, namespace, quiet)).done == f"{OLD.name} answers again already"
    assert (await service.models.get(namespace, afresh=True)).current == OLD
    with pytest.raises(Conflict, match="are still kept"):
        await reindex.choose(service, namespace, "a-third")

    await reindex.drop(service, namespace, quiet, keep_seconds=1.1)
    await alice.search("when does the ferry leave?", mode="vector")
    for row in (await records(stack.client, namespace)).values():
        assert (row[b"model"], NEW.field.encode() in row) == (OLD.label.encode(), False)
    assert await stack.client.hkeys(keys.meta) == [b"model", b"dimension", b"field", *rest_of_meta()]
    indexes = {name.decode() for name in await stack.client.execute_command("FT._LIST") if namespace in name.decode()}
    assert indexes == {keys.index(1), keys.task_index(OLD.field)}
    assert not await stack.client.exists(keys.jobs(NEW.name))
    with pytest.raises(Conflict, match="has no previous model"):
        await reindex.back(service, namespace, quiet)


def rest_of_meta() -> list[bytes]:
    return [b"versions", b"version", b"switched_at", b"switches"]


async def test_model_of_another_dimension_takes_over(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    await fill(alice, range(12))
    long = await alice.store(LONG)
    await settled(alice)
    async with running(stack.redis.url_of(SIDECAR), FakeEncoder("wide", 48), SECOND_SIDECAR, transports()):
        await change(server.service, namespace, "wide")
        answer = await alice.call("semantic_search", query=note_text(7), mode="vector", limit=1)
        assert answer["hits"][0]["memory"]["content"] == note_text(7)
        assert answer["hits"][0]["vector_score"] == 1.0
        assert not answer["partial"]
        stored = await alice.call("store_memory", content="A new one.", wait=True)
        assert stored["vector"] == "ready"
        vectors = [row[b"vec16_wide"] for row in (await records(stack.client, namespace)).values()]
        assert {len(vector) for vector in vectors} == {2 * 48}
        assert (await alice.call("find_similar_memories", memory_id=long, limit=3))["hits"]


@pytest.mark.long
async def test_changed_index_is_rebuilt_from_the_same_vectors(
    stack: Stack, server: Server, alice: Agent, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    service, keys = server.service, Keys(namespace)
    await fill(alice, range(20))
    before = await records(stack.client, namespace)
    settings = service.settings.vector_store
    other = settings.model_copy(update={"hnsw": settings.hnsw.model_copy(update={"m": 24})})
    await index.drop_index(stack.client, keys.index(1))
    await index.ensure_index(stack.client, keys, OLD, other, behind_alias=True)
    await DriftWarnings(settings).once(stack.client, keys)
    assert f"vec has m 24 instead of 16; to rebuild it: redis-memory reindex --namespace {namespace}" in caplog.text

    done = await change(service, namespace)
    assert (done.asked, done.index, done.done) == (0, keys.index(2), "the index was rebuilt")
    assert (await reindex.look(service, namespace)).drift == []
    assert await records(stack.client, namespace) == before
    assert await stack.client.execute_command("FT.INFO", keys.index_alias)
    with pytest.raises(Exception, match=r"(?i)no such index|unknown index"):
        await stack.client.execute_command("FT.INFO", keys.index(1))
    assert await alice.search(note_text(3), mode="vector", limit=1) == [note_text(3)]


@pytest.mark.long
async def test_index_that_keeps_word_positions_is_rebuilt_without_them(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    service, keys = server.service, Keys(namespace)
    await fill(alice, range(20))
    words = note_text(3)
    found = await alice.search(words, mode="keyword", limit=3)
    await index.drop_index(stack.client, keys.index(1))
    definition = IndexDefinition(prefix=[keys.memory_prefix, keys.chunk_prefix])
    settings = service.settings.vector_store
    fields = index.memory_fields(settings.model, settings.hnsw)
    await stack.client.ft(keys.index(1)).create_index(fields, definition=definition, stopwords=[])
    await stack.client.ft(keys.index(1)).aliasadd(keys.index_alias)
    assert (await reindex.look(service, namespace)).drift == ["it keeps the positions of words, which no search uses"]

    await change(service, namespace)
    assert (await reindex.look(service, namespace)).drift == []
    info = await stack.client.execute_command("FT.INFO", keys.index_alias)
    assert float(info[b"offset_vectors_sz_mb"]) == 0
    assert await alice.search(words, mode="keyword", limit=3) == found


async def test_change_stopped_after_any_write_completes_when_rerun(
    stack: Stack,
    server: Server,
    second_sidecar: SidecarProcess,
    alice: Agent,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await fill(alice, range(3))
    monkeypatch.setattr(reindex, "MODELS_SECONDS", 0.0)
    settings = Settings.load(redis_url=stack.redis.url_of(SERVER), master_key=MASTER_KEY)
    async with Service(settings).running() as service:
        steps = (
            lambda: change(service, namespace, NEW.name),
            lambda: reindex.drop(service, namespace, quiet, keep_seconds=0),
        )
        for step, least in zip(steps, (3, 2), strict=True):
            assert await stop_after_each_write(service, step) >= least
        models = await service.models.get(namespace, afresh=True)
    assert (models.current.name, models.other) == (NEW.name, None)
    assert await lacking(stack.client, namespace, NEW) == []
    await server.service.models.get(namespace, afresh=True)  # skip the one-second cache
    assert await alice.search(note_text(2), mode="vector", limit=1) == [note_text(2)]


async def test_open_tasks_and_agents_are_routed_by_the_new_model(
    stack: Stack, server: Server, second_sidecar: SidecarProcess, alice: Agent, bob: Agent, namespace: str
) -> None:
    service, keys = server.service, Keys(namespace)
    await bob.call("register_agent", description="I repair sails and ropes.")
    task = await submit(alice, "Mend the torn sail.", required_capabilities=["nobody can"])
    await change(service, namespace, NEW.name)
    again = await alice.call(
        "distribute_task", description="Mend the sail that is torn.", required_capabilities=["nobody"]
    )
    assert [one["task_id"] for one in again["similar_tasks"]] == [task]
    profile = await stack.client.hget(keys.agent("bob"), "profile")
    assert profile
    assert profile.startswith(NEW.field.encode() + b"\0")


async def test_standing_query_continues_with_the_new_model(
    stack: Stack, server: Server, second_sidecar: SidecarProcess, alice: Agent, bob: Agent, namespace: str
) -> None:
    await alice.store(note_text(1), visibility="shared", wait=True)
    await register(bob, "bob")
    waiting = asyncio.create_task(
        bob.call("wait_for_events", query="a lighthouse keeper", kinds=["match"], min_score=0.4, timeout_seconds=20)
    )
    await wait_until(lambda: listens(server.service, namespace))
    await change(server.service, namespace, NEW.name)
    await alice.store("The lighthouse has a new keeper.", visibility="public", wait=True)
    assert [event["kind"] for event in (await waiting)["events"]] == ["match"]


async def listens(service: Service, namespace: str) -> bool:
    return service.events.count(namespace) > 0


async def test_unembeddable_memories_block_the_switch_unless_left_out(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    await alice.store("Some poison in a cup.", visibility="shared", wait=True)
    await fill(alice, range(3))
    encoder = FakeEncoder("frail", 16, poison="poison")
    hasty = replace(SECOND_SIDECAR, lease=0.1)
    async with running(stack.redis.url_of(SIDECAR), encoder, hasty, transports()):
        with pytest.raises(Conflict, match="1 text could not be embedded by frail"):
            await change(server.service, namespace, "frail")
        assert (await server.service.models.get(namespace, afresh=True)).current == OLD
        done = await change(server.service, namespace, "frail", leave_failed=True)
        assert (done.model, done.failed) == ("frail", 1)
        answer = await alice.call("semantic_search", query="cup", limit=1)
        assert answer["hits"][0]["memory"]["content"] == "Some poison in a cup."
        assert "1 text could not be embedded and was searched by words only" in answer["reason"]
    await stack.client.delete(Keys(namespace).dead_jobs)


async def test_change_without_a_sidecar_of_the_model_does_not_start(
    stack: Stack, server: Server, alice: Agent, namespace: str
) -> None:
    await alice.store(note_text(1), wait=True)
    with pytest.raises(EmbeddingUnavailable, match="no embedding sidecar for bge-small is alive") as refused:
        await change(server.service, namespace, "bge-small")
    assert "redis-memory-embedder --model bge-small" in refused.value.hint
    with pytest.raises(InvalidArgument, match="nothing was ever stored"):
        await change(server.service, "nowhere", "bge-small")
    assert (await server.service.models.get(namespace, afresh=True)).other is None


async def test_reindex_command_shows_its_plan_and_progress(
    stack: Stack, second_sidecar: SidecarProcess, alice: Agent, namespace: str
) -> None:
    await fill(alice, range(4))

    shell = Shell(stack, namespace)
    would = await shell.json("reindex", "--model", NEW.name, "--dry-run")
    assert would["next"] == f"4 texts would be embedded by {NEW}, which would then answer"
    status = await shell.json("reindex", "--status")
    assert (status["answers"]["embedded"], status.get("other"), status["next"]) == (4, None, "")
    assert await lacking(stack.client, namespace, NEW) != []
    assert isinstance(await shell.refused("reindex", "--back", "--drop-old"), InvalidArgument)
    assert isinstance(await shell.refused("reindex", "--back"), Conflict)
    assert "current" in (await shell.run("reindex", "--status")).stdout


async def test_search_with_the_old_model_uses_the_old_index_while_it_exists(
    stack: Stack, server: Server, alice: Agent, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may not know of the switch for a moment. Vectors of two models are never compared."""
    models = server.service.models
    await fill(alice, range(10))
    monkeypatch.setattr(known_models, "MODELS_SECONDS", 60.0)
    async with running(stack.redis.url_of(SIDECAR), FakeEncoder("alien", 384), SECOND_SIDECAR, transports()):
        await change(server.service, namespace, "alien")
        models.put(namespace, Models(OLD))
        assert await alice.search(note_text(4), mode="vector", limit=1) == [note_text(4)]
        stored = await alice.store(note_text(77), wait=True)
        row = (await records(stack.client, namespace))[Keys(namespace).memory(stored)]
        assert b"none:vec16_alien" in row[b"model"] or b"vec16_alien" in row, "the model that answers has to embed it"
        assert (await models.get(namespace, afresh=True)).current.name == "alien"
        await settled(alice)
        assert await alice.search(note_text(77), mode="vector", limit=1) == [note_text(77)]


def test_model_is_ready_if_the_vector_state_names_it() -> None:
    model = Model("a", 8, half=False)
    assert [model.is_ready(state) for state in (None, "", "none:a", "b\x1fnone:a", "a", b"b\x1fa")] == [
        False, False, False, False, True, True,
    ]  # fmt: skip
