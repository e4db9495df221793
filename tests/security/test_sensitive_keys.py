"""The keys of sensitive memories: nothing in clear anywhere; keys that are changed, destroyed or not there."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from support.embedder_fixtures import wait_until
from support.leaks import Monitor, everything
from support.local_helpers import stop_everything
from support.long_content import prose
from support.redis_users import SERVER, SIDECAR
from support.sharing_helpers import refusal, register
from support.stack import Agent, SidecarProcess, Stack, in_own_task, serving, sidecar_is_ready, whole_stack
from support.stdio import stdio_agent
from typer.testing import CliRunner

from memory_core.crypto.keyring import load_keyring, new_key, written
from memory_core.crypto.sealing import key_id
from memory_core.errors import KeyMissing, Tampered
from memory_core.records.keys import GROUP, Keys
from memory_core.records.vectors import to_bytes
from memory_core.settings.settings import Settings
from memory_core.store import functions
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_server.cli import app
from memory_server.engine.request import Caller
from memory_server.index import loader
from memory_server.index.loader import Ref
from memory_server.operations.doctor import examine
from memory_server.operations.verify_integrity import adopt

MASTER = new_key()
MANY = 200


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stack]:
    """A stack whose Redis is watched, and whose sidecar comes and goes."""
    folder = tmp_path_factory.mktemp("own")
    async with in_own_task(whole_stack(folder, embed_wait_seconds=15.0, master_key=MASTER)) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def ann(own: Stack, namespace: str) -> AsyncGenerator[Agent]:
    """An agent."""
    async with in_own_task(own.server.agent("ann", namespace)) as agent:
        yield agent


async def test_nothing_of_a_sensitive_memory_is_in_clear_anywhere(
    own: Stack, ann: Agent, namespace: str, caplog: pytest.LogCaptureFixture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    contents = {name: f"The {name} canary sings 4f9a{number}e in the cellar." for number, name in enumerate(
        ("waited", "queued", "changed", "long", "batched"))}  # fmt: skip
    hide: dict[str, Any] = {"sensitive": True, "metadata": {"bird": "metacanary7c2"}, "idempotency_key": "k1"}
    async with Monitor(own.redis.path) as monitor:
        ids = [await ann.store(contents["waited"], **hide)]
        ids.append(await ann.store(contents["queued"], sensitive=True, wait=False))
        long = await ann.store(prose(100) + contents["long"], sensitive=True, wait=False)
        await ann.call("update_memory", memory_id=ids[0], content=contents["changed"])
        await ann.call("update_memory", memory_id=ids[0], metadata={"bird": "metacanary7c3"})
        batched = {"op": "store_memory", "content": contents["batched"], "sensitive": True, "wait": True}
        await ann.call("batch_operations", operations=[batched])

        async def settled() -> bool:
            return (await ann.call("memory_stats"))["vector_backlog"] == 0

        await wait_until(settled, 60)
        await ann.store(contents["waited"], sensitive=True)
        for query in ("birds below the house", "what sings?"):
            assert (await ann.call("semantic_search", query=query))["hits"]
        assert (await ann.call("find_similar_memories", memory_id=ids[0]))["hits"]
        await ann.call("wait_for_events", cursor="0-0", timeout_seconds=0)
        for tool, said in (
            ("store_memory", hide | {"content": contents["batched"]}),
            ("update_memory", {"memory_id": ids[0], "content": contents["changed"], "expected_rev": 99}),
        ):
            told.append((await refusal(ann, tool, **said))[1])
        await own.client.hset(Keys(namespace).memory(long), "owner", "nobody")
        told.append((await refusal(ann, "retrieve_memory", memory_id=long))[1])
        vectors = await own.server.service.embeddings.embed(
            list(contents.values())[:3], Caller("ann", namespace), secret=True
        )
        await monitor.until(b"the end of the song", own.client)
    own.sidecar.stop()
    folder = own.redis.path.parent
    aof = b"".join(path.read_bytes() for path in folder.rglob("*.aof"))
    slow = str(await own.client.slowlog_get(128)).encode()
    places = {
        "Redis": await everything(own.client),
        "the wire": bytes(monitor.heard),
        "the append-only file": aof,
        "the slow log": slow,
        "the server's log": _log_of_the_server(caplog),
        "the sidecar's log": own.sidecar.said,
        "errors": "\n".join(told).encode(),
    }
    own.sidecar.start()
    await wait_until(lambda: sidecar_is_ready(own.client), 90)
    assert namespace.encode() in places["the wire"]
    assert namespace.encode() in places["the append-only file"]
    canaries = [b"canary", b"4f9a", b"metacanary", *(to_bytes(vector)[:64] for vector in vectors)]
    canaries += [b"lantern gravel", np.float32(vectors[0][:16]).tobytes()]
    found = {(place, canary) for place, text in places.items() for canary in canaries if canary in text}
    assert not found


def _log_of_the_server(caplog: pytest.LogCaptureFixture) -> bytes:
    """Leave out what the agents log, which run in this process too."""
    lines = [record.getMessage() for record in caplog.records if not record.name.startswith("mcp.client")]
    assert lines
    return "\n".join(lines).encode()


async def command(*arguments: str, redis_url: str, master: str) -> asyncio.subprocess.Process:
    """Start `redis-memory keys` as an operator would."""
    environment = {**os.environ, "REDIS_URL": redis_url, "MEMORY_MASTER_KEY": master}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "memory_server", "keys", *arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(*arguments: str, redis_url: str, master: str = MASTER) -> str:
    """Run it to its end and give what it says."""
    process = await command(*arguments, redis_url=redis_url, master=master)
    said, complaint = await process.communicate()
    assert process.returncode == 0, complaint.decode()
    return said.decode()


async def hide_many(agent: Agent, number: int) -> list[str]:
    """Store memories with ready-made vectors."""
    vectors = np.random.default_rng(5).normal(size=(number, 384))
    operations = [
        {
            "op": "store_memory",
            "content": f"Secret number {place}.",
            "memory_type": "embedding",
            "vector": [round(float(value), 4) for value in vector],
            "sensitive": True,
        }
        for place, vector in enumerate(vectors)
    ]
    ids: list[str] = []
    for start in range(0, number, 100):
        answer = await agent.call("batch_operations", operations=operations[start : start + 100])
        assert answer["failed"] == 0
        ids += [result["result"]["memory_id"] for result in answer["results"]]
    return ids


async def owner_of(stack: Stack, namespace: str, agent: str = "ann") -> str:
    """Give the owner id of an agent."""
    return (await stack.client.hget(Keys(namespace).agent(agent), "owner")).decode()


async def versions(stack: Stack, namespace: str, ids: list[str]) -> dict[str, int]:
    """Count memories by the version of the key that they are sealed under."""
    counts: dict[str, int] = {}
    for memory_id in ids:
        name = key_id(await stack.client.hget(Keys(namespace).memory(memory_id), "sealed"))
        counts[name] = counts.get(name, 0) + 1
    return counts


async def contents_of(agent: Agent, ids: list[str]) -> list[str]:
    """Read memories whole."""
    operations = [{"op": "retrieve_memory", "memory_id": memory_id} for memory_id in ids]
    answer = await agent.call("batch_operations", operations=operations)
    assert answer["failed"] == 0
    return [result["result"]["memory"]["content"] for result in answer["results"]]


async def test_a_rotation_that_is_killed_loses_nothing_and_goes_on_when_run_again(
    own: Stack, ann: Agent, namespace: str
) -> None:
    ids = [*await hide_many(ann, MANY), await ann.store(prose(60), sensitive=True)]
    before, url = await contents_of(ann, ids), own.redis.url_of(SERVER)
    assert len(await versions(own, namespace, ids)) == 1
    key = Keys(namespace).data_key(await owner_of(own, namespace))
    process = await command("rotate", "--agent", "ann", "--namespace", namespace, redis_url=url, master=MASTER)

    async def under_way() -> bool:
        return len(await versions(own, namespace, ids[-20:])) == 2

    await wait_until(under_way)
    process.kill()
    await process.wait()
    half = await versions(own, namespace, ids)
    assert len(half) == 2
    assert await own.client.hlen(key) == 3
    assert await contents_of(ann, ids) == before
    late = await ann.store("Stored in between.", sensitive=True)
    said = await run("rotate", "--agent", "ann", "--namespace", namespace, redis_url=url)
    current = (await own.client.hget(key, "current")).decode()
    assert f"{half[next(name for name in half if name != current)]} memories" in said
    assert await versions(own, namespace, [*ids, late]) == {current: len(ids) + 1}
    assert await own.client.hlen(key) == 2
    assert await contents_of(ann, ids) == before

    async def has_all_vectors() -> bool:
        return (await ann.call("memory_stats"))["vector_backlog"] == 0

    await wait_until(has_all_vectors)
    found = (await ann.call("find_similar_memories", memory_id=ids[0], limit=100))["hits"]
    assert len(found) == 100
    repeated = await ann.call("store_memory", content=before[0], sensitive=True)
    assert repeated["duplicate_of"] == ids[0]


async def test_a_server_that_still_knows_the_old_key_seals_under_the_new_one(
    own: Stack, ann: Agent, namespace: str
) -> None:
    ids = [await ann.store("Before the rotation.", sensitive=True)]
    await run("rotate", "--namespace", namespace, redis_url=own.redis.url_of(SERVER))
    ids.append(await ann.store("After it.", sensitive=True))
    await ann.call("update_memory", memory_id=ids[0], tags=["later"])
    assert len(await versions(own, namespace, ids)) == 1
    assert await contents_of(ann, ids) == ["Before the rotation.", "After it."]


async def test_data_keys_change_to_another_master_key(own: Stack, ann: Agent, namespace: str) -> None:
    memory_id, newer, url = await ann.store("A secret.", sensitive=True), new_key(), own.redis.url_of(SERVER)
    said = await run("rewrap", "--namespace", namespace, redis_url=url, master=f"{newer},{MASTER}")
    assert said.startswith("1 data keys")
    assert (await run("rewrap", "--namespace", namespace, redis_url=url, master=f"{newer},{MASTER}")).startswith("0 ")
    async with serving(url, master_key=f"{newer},{MASTER}") as server:
        assert (await adopt(server.service, namespace)).adopted == 1
    async with serving(url, master_key=newer) as server, server.agent("ann", namespace) as agent:
        assert await contents_of(agent, [memory_id]) == ["A secret."]
    async with serving(url, master_key=MASTER) as server, server.agent("ann", namespace) as agent:
        assert (await refusal(agent, "retrieve_memory", memory_id=memory_id))[0] == "tampered"


async def test_an_agent_that_is_deleted_takes_its_key_with_it(own: Stack, ann: Agent, namespace: str) -> None:
    keys = Keys(namespace)
    await register(ann, "ann")
    memory_id = await ann.store("A secret.", sensitive=True)
    owner = await owner_of(own, namespace)
    async with serving(own.redis.url_of(SERVER), master_key=MASTER) as other:
        async with other.agent("ann", namespace) as agent:
            assert (await agent.call("semantic_search", query="secret"))["hits"]
        kept = await own.client.hgetall(keys.memory(memory_id))
        vaults = [own.server.service.vault, other.service.vault]
        assert len(vaults[1].vectors) == 1
        await ann.call("unregister_agent", memories="delete")
        assert await own.client.exists(keys.data_key(owner)) == 0
        assert not await own.client.sismember(keys.keyed, owner)
        await vaults[1].look_again()
        assert len(vaults[1].vectors) == 0
        await own.client.hset(keys.memory(memory_id), mapping=kept)
        record = (await loader.load(own.client, keys, [Ref(memory_id)], own.server.service.backend.integrity))[0]
        for vault in vaults:
            with pytest.raises(Tampered):
                await vault.open(namespace, record)
        await own.client.delete(keys.memory(memory_id))
    assert await ann.store("Begun anew.", sensitive=True)


async def test_a_clear_vector_is_refused_for_a_sealed_memory_and_the_reverse(
    own: Stack, ann: Agent, namespace: str
) -> None:
    keys, names = Keys(namespace), ("sealed", "clear")
    ids = [await ann.store(f"The {name} one.", sensitive=name == "sealed") for name in names]
    for memory_id, sealed in zip(ids, (False, True), strict=True):
        before = await own.client.hgetall(keys.memory(memory_id))
        vector = np.zeros(384, dtype=np.float32)
        vector[0] = 1
        item = {
            "id": memory_id, "piece": 0, "entry": "1-1", "rev": 1, "hash": before[b"hash"].decode(), "dimension": 384,
            "bytes": to_bytes(vector), "sealed": sealed,
        }  # fmt: skip
        answer = await functions.call(
            own.client, "rm1_commit", [keys.jobs(DEFAULT_MODEL), keys.events, keys.memory(memory_id)],
            group=GROUP, model="all-MiniLM-L6-v2", items=[item],
        )  # fmt: skip
        assert answer["verdicts"] == ["bad_vector"]
        assert await own.client.hgetall(keys.memory(memory_id)) == before


async def test_a_sidecar_without_the_key_leaves_sealed_texts_to_others_and_says_so(
    own: Stack, ann: Agent, namespace: str
) -> None:
    own.sidecar.stop()
    keyless = SidecarProcess(own.redis.url_of(SIDECAR))
    keyless.start()
    try:
        await wait_until(lambda: sidecar_is_ready(own.client), 90)
        memory_id = (await ann.call("store_memory", content="A secret.", sensitive=True))["memory_id"]
        status = await ann.call("gpu_status")
        assert status["partial"]
        assert "MEMORY_TRANSPORT_KEY" in status["reason"]
        assert (await refusal(ann, "semantic_search", query="a secret", mode="vector"))[0] == "embedding_unavailable"
        report = await examine(Settings.load(redis_url=own.redis.url_of(SERVER), master_key=MASTER))
        assert any(finding.id == "sidecars.key" for finding in report.faults)
        jobs = Keys(namespace).jobs(DEFAULT_MODEL)

        async def given_back() -> bool:
            pending = await own.client.xpending_range(jobs, GROUP, "-", "+", 10)
            return bool(pending) and all(
                item["time_since_delivered"] > 600_000 and item["times_delivered"] == 0 for item in pending
            )

        await wait_until(given_back)
    finally:
        keyless.stop()
        own.sidecar.start()

    async def is_ready() -> bool:
        return (await ann.call("retrieve_memory", memory_id=memory_id))["memory"]["vector"] == "ready"

    await wait_until(is_ready, 90)
    assert await own.client.xlen(Keys(namespace).dead_jobs) == 0
    assert b"transport key" in keyless.said


async def test_the_embedded_default_gives_its_sidecar_the_transport_key_alone(tmp_path: Path) -> None:
    try:
        async with stdio_agent("ann", "--data-dir", str(tmp_path), MEMORY_MASTER_KEY=MASTER) as agent:
            stored = await agent.call("store_memory", content="A secret.", sensitive=True, wait=False)

            async def is_ready() -> bool:
                memory = (await agent.call("retrieve_memory", memory_id=stored["memory_id"]))["memory"]
                return memory["vector"] == "ready"

            await wait_until(is_ready, 90)
            pids = (await examine(Settings.load(data_dir=tmp_path))).redis
            environments = {
                name: Path(f"/proc/{pids[name]}/environ").read_bytes()  # noqa: ASYNC240
                for name in ("pid", "sidecar_pid", "supervisor_pid")
            }
        transport = written(load_keyring(Settings.load(master_key=MASTER)).transports[0]).encode()
        assert not any(MASTER.encode() in environment for environment in environments.values())
        assert transport in environments["sidecar_pid"]
        assert transport not in environments["pid"]
    finally:
        await stop_everything(tmp_path)


def test_keys_are_made_and_derived_from_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = CliRunner()
    made = shell.invoke(app, ["keys", "new"]).stdout.strip()
    monkeypatch.setenv("MEMORY_MASTER_KEY", made)
    transport = shell.invoke(app, ["keys", "transport"]).stdout.strip()
    derived = load_keyring(Settings.load()).transports
    monkeypatch.delenv("MEMORY_MASTER_KEY")
    assert load_keyring(Settings.load(transport_key=transport)).transports == derived
    assert load_keyring(Settings.load(transport_key=transport, master_key=made)).masters[0].value != derived[0].value
    assert isinstance(shell.invoke(app, ["keys", "transport"]).exception, KeyMissing)
