"""Keys of sensitive memories: no clear text anywhere; rotated, destroyed and missing keys."""

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
from support.local_helpers import stop_everything
from support.long_content import prose
from support.redis_monitor import Monitor, all_values
from support.redis_users import SERVER, SIDECAR
from support.sharing_helpers import refusal, register
from support.stack import Agent, SidecarProcess, Stack, in_own_task, serving, sidecar_is_ready, whole_stack
from support.stdio import stdio_agent
from typer.testing import CliRunner

from memory_core.crypto.keyring import load_keyring, new_key
from memory_core.crypto.sealing import key_id
from memory_core.errors import KeyMissing, Tampered
from memory_core.records.keys import GROUP, Keys
from memory_core.records.vectors import to_bytes
from memory_core.settings.settings import Settings
from memory_core.store import functions
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_server.cli import app
from memory_server.engine.request_context import Caller
from memory_server.index import loader
from memory_server.index.loader import Ref
from memory_server.operations.doctor import examine
from memory_server.operations.verify_integrity import adopt

MASTER = new_key()
MANY = 200


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own_stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stack]:
    """A stack of this module: its Redis is monitored, and its sidecar stops and starts."""
    folder = tmp_path_factory.mktemp("own")
    async with in_own_task(whole_stack(folder, embed_wait_seconds=15.0, master_key=MASTER)) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def ann(own_stack: Stack, namespace: str) -> AsyncGenerator[Agent]:
    """An agent."""
    async with in_own_task(own_stack.server.agent("ann", namespace)) as agent:
        yield agent


async def test_no_part_of_a_sensitive_memory_is_in_clear_anywhere(
    own_stack: Stack,
    ann: Agent,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    caplog.set_level(logging.DEBUG)
    refusals: list[str] = []
    contents = {name: f"The {name} canary sings 4f9ac3d17b{number}e in the cellar." for number, name in enumerate(
        ("waited", "queued", "changed", "long", "batched"))}  # fmt: skip
    hide: dict[str, Any] = {"sensitive": True, "metadata": {"bird": "metacanary7c2"}, "idempotency_key": "k1"}
    async with Monitor(own_stack.redis.path) as monitor:
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
        for tool, arguments in (
            ("store_memory", hide | {"content": contents["batched"]}),
            ("update_memory", {"memory_id": ids[0], "content": contents["changed"], "expected_rev": 99}),
        ):
            refusals.append((await refusal(ann, tool, **arguments))[1])
        await own_stack.client.hset(Keys(namespace).memory(long), "owner", "nobody")
        refusals.append((await refusal(ann, "retrieve_memory", memory_id=long))[1])
        vectors = await own_stack.server.service.embeddings.embed(
            list(contents.values())[:3], Caller("ann", namespace), secret=True
        )
        await monitor.until(b"the end of the song", own_stack.client)
    own_stack.sidecar.stop()
    folder = own_stack.redis.path.parent
    aof = b"".join(path.read_bytes() for path in folder.rglob("*.aof"))
    slow = str(await own_stack.client.slowlog_get(128)).encode()
    places = {
        "Redis": await all_values(own_stack.client),
        "the wire": bytes(monitor.received),
        "the append-only file": aof,
        "the slow log": slow,
        "the server's log": _log_of_the_server(caplog),
        "the sidecar's log": own_stack.sidecar.log,
        "errors": "\n".join(refusals).encode(),
    }
    own_stack.sidecar.start()
    await wait_until(lambda: sidecar_is_ready(own_stack.client), 90)
    assert namespace.encode() in places["the wire"]
    assert namespace.encode() in places["the append-only file"]
    canaries = [b"canary", b"4f9ac3d17b", b"metacanary", *(to_bytes(vector)[:64] for vector in vectors)]
    canaries += [b"lantern gravel", np.float32(vectors[0][:16]).tobytes()]
    found = {(place, canary) for place, text in places.items() for canary in canaries if canary in text}
    assert not found


def _log_of_the_server(caplog: pytest.LogCaptureFixture) -> bytes:
    """Return the server's log without the agents' lines, which come from the same process."""
    lines = [record.getMessage() for record in caplog.records if not record.name.startswith("mcp.client")]
    assert lines
    return "\n".join(lines).encode()


async def command(*arguments: str, redis_url: str, master: str) -> asyncio.subprocess.Process:
    """Start `redis-memory keys` in its own process."""
    environment = {**os.environ, "REDIS_URL": redis_url, "MEMORY_MASTER_KEY": master}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "memory_server", "keys", *arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(*arguments: str, redis_url: str, master: str = MASTER) -> str:
    """Run `redis-memory keys` to its end and return its output."""
    process = await command(*arguments, redis_url=redis_url, master=master)
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def store_many_sensitive(agent: Agent, number: int) -> list[str]:
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
        answer = await agent.call("batch_operations", operations=operations[start : start + 100], max_tokens=0)
        assert answer["failed"] == 0
        ids += [result["result"]["memory_id"] for result in answer["results"]]
    return ids


async def owner_of(stack: Stack, namespace: str, agent: str = "ann") -> str:
    """Return the owner id of an agent."""
    return (await stack.client.hget(Keys(namespace).agent(agent), "owner")).decode()


async def versions(stack: Stack, namespace: str, ids: list[str]) -> dict[str, int]:
    """Count memories by the version of their sealing key."""
    counts: dict[str, int] = {}
    for memory_id in ids:
        name = key_id(await stack.client.hget(Keys(namespace).memory(memory_id), "sealed"))
        counts[name] = counts.get(name, 0) + 1
    return counts


async def contents_of(agent: Agent, ids: list[str]) -> list[str]:
    """Read the full contents of memories."""
    operations = [{"op": "retrieve_memory", "memory_id": memory_id} for memory_id in ids]
    answer = await agent.call("batch_operations", operations=operations, max_tokens=0)
    assert answer["failed"] == 0
    return [result["result"]["memory"]["content"] for result in answer["results"]]


async def test_killed_rotation_loses_nothing_and_resumes(own_stack: Stack, ann: Agent, namespace: str) -> None:
    ids = [*await store_many_sensitive(ann, MANY), await ann.store(prose(60), sensitive=True)]
    before, url = await contents_of(ann, ids), own_stack.redis.url_of(SERVER)
    assert len(await versions(own_stack, namespace, ids)) == 1
    key = Keys(namespace).data_key(await owner_of(own_stack, namespace))
    process = await command("rotate", "--agent", "ann", "--namespace", namespace, redis_url=url, master=MASTER)

    async def has_started() -> bool:
        return len(await versions(own_stack, namespace, ids[::10])) == 2

    await wait_until(has_started)
    process.kill()
    await process.wait()
    half = await versions(own_stack, namespace, ids)
    assert len(half) == 2
    assert await own_stack.client.hlen(key) == 3
    assert await contents_of(ann, ids) == before
    late = await ann.store("Stored in between.", sensitive=True)
    output = await run("rotate", "--agent", "ann", "--namespace", namespace, redis_url=url)
    current = (await own_stack.client.hget(key, "current")).decode()
    assert f"{half[next(name for name in half if name != current)]} memories" in output
    assert await versions(own_stack, namespace, [*ids, late]) == {current: len(ids) + 1}
    assert await own_stack.client.hlen(key) == 2
    assert await contents_of(ann, ids) == before

    async def has_all_vectors() -> bool:
        return (await ann.call("memory_stats"))["vector_backlog"] == 0

    await wait_until(has_all_vectors)
    found = (await ann.call("find_similar_memories", memory_id=ids[0], limit=100))["hits"]
    assert len(found) == 100
    repeated = await ann.call("store_memory", content=before[0], sensitive=True)
    assert repeated["duplicate_of"] == ids[0]


async def test_server_with_the_old_key_cached_seals_under_the_new_one(
    own_stack: Stack, ann: Agent, namespace: str
) -> None:
    ids = [await ann.store("Before the rotation.", sensitive=True)]
    await run("rotate", "--namespace", namespace, redis_url=own_stack.redis.url_of(SERVER))
    ids.append(await ann.store("After it.", sensitive=True))
    await ann.call("update_memory", memory_id=ids[0], tags=["later"])
    assert len(await versions(own_stack, namespace, ids)) == 1
    assert await contents_of(ann, ids) == ["Before the rotation.", "After it."]


async def test_data_keys_are_rewrapped_under_a_new_master_key(own_stack: Stack, ann: Agent, namespace: str) -> None:
    memory_id, newer, url = await ann.store("A secret.", sensitive=True), new_key(), own_stack.redis.url_of(SERVER)
    output = await run("rewrap", "--namespace", namespace, redis_url=url, master=f"{newer},{MASTER}")
    assert output.startswith("1 data key is encrypted")
    assert (await run("rewrap", "--namespace", namespace, redis_url=url, master=f"{newer},{MASTER}")).startswith("0 ")
    async with serving(url, master_key=f"{newer},{MASTER}") as server:
        assert (await adopt(server.service, namespace)).adopted == 1
    async with serving(url, master_key=newer) as server, server.agent("ann", namespace) as agent:
        assert await contents_of(agent, [memory_id]) == ["A secret."]
    async with serving(url, master_key=MASTER) as server, server.agent("ann", namespace) as agent:
        assert (await refusal(agent, "retrieve_memory", memory_id=memory_id))[0] == "key_missing"


@pytest.mark.parametrize("step", ["rotate", "rewrap"])
async def test_damaged_data_key_stops_no_rotation_of_the_others(
    own_stack: Stack, ann: Agent, namespace: str, step: str
) -> None:
    keys, url = Keys(namespace), own_stack.redis.url_of(SERVER)
    await ann.store("A secret.", sensitive=True)
    damaged = "0" * 26  # sorts before all others
    await own_stack.client.set(keys.data_key(damaged), "damaged")
    await own_stack.client.sadd(keys.keyed, damaged)
    process = await command(step, "--namespace", namespace, redis_url=url, master=f"{new_key()},{MASTER}")
    output, errors = await process.communicate()
    assert process.returncode == 1, errors.decode()
    assert f"{damaged}: the data key of their owner cannot be read" in errors.decode()
    assert "1 memory is encrypted" in output.decode() or "1 data key is encrypted" in output.decode()
    assert await own_stack.client.get(keys.data_key(damaged)) == b"damaged"


async def test_deleting_an_agent_destroys_its_key(own_stack: Stack, ann: Agent, namespace: str) -> None:
    keys = Keys(namespace)
    await register(ann, "ann")
    memory_id = await ann.store("A secret.", sensitive=True)
    owner = await owner_of(own_stack, namespace)
    async with serving(own_stack.redis.url_of(SERVER), master_key=MASTER) as other:
        async with other.agent("ann", namespace) as agent:
            assert (await agent.call("semantic_search", query="secret"))["hits"]
        kept = await own_stack.client.hgetall(keys.memory(memory_id))
        vaults = [own_stack.server.service.vault, other.service.vault]
        assert len(vaults[1].vectors) == 1
        await ann.call("unregister_agent", memories="delete")
        assert await own_stack.client.exists(keys.data_key(owner)) == 0
        assert not await own_stack.client.sismember(keys.keyed, owner)
        await vaults[1].look_again()
        assert len(vaults[1].vectors) == 0
        await own_stack.client.hset(keys.memory(memory_id), mapping=kept)
        record = (
            await loader.load(own_stack.client, keys, [Ref(memory_id)], own_stack.server.service.backend.integrity)
        )[0]
        for vault in vaults:
            with pytest.raises(Tampered):
                await vault.open(namespace, record)
        await own_stack.client.delete(keys.memory(memory_id))
    assert await ann.store("Begun anew.", sensitive=True)


async def test_clear_vector_of_a_sealed_memory_is_refused_and_vice_versa(
    own_stack: Stack, ann: Agent, namespace: str
) -> None:
    keys, names = Keys(namespace), ("sealed", "clear")
    ids = [await ann.store(f"The {name} one.", sensitive=name == "sealed") for name in names]
    for memory_id, sealed in zip(ids, (False, True), strict=True):
        before = await own_stack.client.hgetall(keys.memory(memory_id))
        vector = np.zeros(384, dtype=np.float32)
        vector[0] = 1
        item = {
            "id": memory_id, "piece": 0, "entry": "1-1", "rev": 1, "hash": before[b"hash"].decode(), "dimension": 384,
            "bytes": to_bytes(vector), "sealed": sealed,
        }  # fmt: skip
        answer = await functions.call(
            own_stack.client, "rm1_commit", [keys.jobs(DEFAULT_MODEL), keys.events, keys.memory(memory_id)],
            group=GROUP, model="all-MiniLM-L6-v2", items=[item],
        )  # fmt: skip
        assert answer["verdicts"] == ["bad_vector"]
        assert await own_stack.client.hgetall(keys.memory(memory_id)) == before


@pytest.mark.long
async def test_sidecar_without_key_leaves_sealed_texts_and_reports_it(
    own_stack: Stack, ann: Agent, namespace: str
) -> None:
    own_stack.sidecar.stop()
    keyless = SidecarProcess(own_stack.redis.url_of(SIDECAR))
    keyless.start()
    try:
        await wait_until(lambda: sidecar_is_ready(own_stack.client), 90)
        memory_id = (await ann.call("store_memory", content="A secret.", sensitive=True))["memory_id"]
        status = await ann.call("gpu_status")
        assert status["partial"]
        assert "MEMORY_TRANSPORT_KEY" in status["reason"]
        assert (await refusal(ann, "semantic_search", query="a secret", mode="vector"))[0] == "embedding_unavailable"
        report = await examine(Settings.load(redis_url=own_stack.redis.url_of(SERVER), master_key=MASTER))
        assert any(finding.id == "sidecars.key" for finding in report.faults)
        jobs = Keys(namespace).jobs(DEFAULT_MODEL)

        async def is_returned() -> bool:
            pending = await own_stack.client.xpending_range(jobs, GROUP, "-", "+", 10)
            return bool(pending) and all(
                item["time_since_delivered"] > 600_000 and item["times_delivered"] == 0 for item in pending
            )

        await wait_until(is_returned)
    finally:
        keyless.stop()
        own_stack.sidecar.start()

    async def is_ready() -> bool:
        return (await ann.call("retrieve_memory", memory_id=memory_id))["memory"]["vector"] == "ready"

    await wait_until(is_ready, 90)
    assert await own_stack.client.xlen(Keys(namespace).dead_jobs) == 0
    assert b"transport key" in keyless.log


@pytest.mark.long
async def test_embedded_sidecar_receives_only_the_transport_key(tmp_path: Path) -> None:
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
        transport = load_keyring(Settings.load(master_key=MASTER)).transports[0].encoded.encode()
        assert not any(MASTER.encode() in environment for environment in environments.values())
        assert transport in environments["sidecar_pid"]
        assert transport not in environments["pid"]
    finally:
        await stop_everything(tmp_path)


def test_cli_creates_and_derives_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = CliRunner()
    made = shell.invoke(app, ["keys", "new"]).stdout.strip()
    monkeypatch.setenv("MEMORY_MASTER_KEY", made)
    transport = shell.invoke(app, ["keys", "transport"]).stdout.strip()
    derived = load_keyring(Settings.load()).transports
    monkeypatch.delenv("MEMORY_MASTER_KEY")
    assert load_keyring(Settings.load(transport_key=transport)).transports == derived
    assert load_keyring(Settings.load(transport_key=transport, master_key=made)).masters[0].value != derived[0].value
    assert isinstance(shell.invoke(app, ["keys", "transport"]).exception, KeyMissing)
