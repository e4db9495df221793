"""Audit retention, and the buffer that loses no entry on its way to Redis."""

from __future__ import annotations

import pytest
from support.audit_helpers import flushed_entries, is_sealed, read_entries, verify_audit
from support.embedder_fixtures import wait_until
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Agent, Server, Stack, serving

from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.settings.groups import AuditSettings
from memory_server.security.audit import chain, recorder
from memory_server.security.audit.retention import trim


async def test_expired_entries_go_up_to_a_seal_and_the_rest_is_intact(
    server: Server, alice: Agent, stack: Stack, namespace: str
) -> None:
    for number in range(5):
        await alice.store(f"Number {number}.", wait=False)
        await alice.store(f"Another {number}.", wait=False)
        await wait_until(lambda: is_sealed(stack.client, namespace))
    backend, client, keys = server.service.backend, stack.client, Keys(namespace)
    assert await trim(backend, namespace, AuditSettings()) == 0
    went = await trim(backend, namespace, AuditSettings(keep_days=0, keep_entries=5))
    assert 0 < went <= 5
    assert await trim(backend, namespace, AuditSettings(keep_days=0, keep_entries=5)) <= 6
    entries = await read_entries(client, namespace)
    assert int(entries[0]["n"]) > went
    await chain.seal(backend, namespace)
    report = await verify_audit(server, client, namespace)
    assert (report.ok, report.first, report.unsealed) == (True, int(entries[0]["n"]), 0)
    await client.xtrim(keys.audit, maxlen=len(entries) - 2, approximate=False)
    assert not (await verify_audit(server, client, namespace)).ok


async def test_without_key_entries_expire_and_leave_no_gaps(stack: Stack, namespace: str) -> None:
    async with serving(stack.redis.url_of(SERVER)) as keyless:
        async with keyless.agent("alice", namespace) as alice:
            for number in range(6):
                await alice.store(f"Number {number}.", wait=False)
        assert await trim(keyless.service.backend, namespace, AuditSettings(keep_entries=4)) == 2
        report = await verify_audit(keyless, stack.client, namespace)
    assert (report.ok, report.keyed, report.first, report.entries) == (True, False, 3, 5)


async def test_entries_are_buffered_while_redis_is_down_and_drops_counted(
    server: Server, alice: Agent, stack: Stack, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "MOST_HELD", 5)
    held = server.runtime.recorder
    assert await server.service.auditor.flush()
    for _ in range(9):
        held.add(namespace, {"who": "alice", "op": "gpu_status", "ids": [], "from": "here", "nonce": new_id()})
    entries = await flushed_entries(server, stack.client, namespace)
    assert [(entry["op"], entry.get("count")) for entry in entries] == [("gpu_status", None)] * 5 + [
        ("audit_lost", "4")
    ]


async def test_batch_with_a_lost_reply_is_written_once(
    server: Server, alice: Agent, stack: Stack, namespace: str
) -> None:
    await alice.store("One.")
    held = server.runtime.recorder
    before = len(await flushed_entries(server, stack.client, namespace))
    held.add(namespace, {"who": "alice", "op": "gpu_status", "ids": [], "from": "here", "nonce": new_id()})
    batch = next(one for one in held.batches() if one.namespace == namespace)
    await server.service.auditor._write(batch)  # pyright: ignore[reportPrivateUsage]
    assert len(await flushed_entries(server, stack.client, namespace)) == before + 1


async def test_rate_limit_refusals_are_merged_into_one_counting_entry(
    stack: Stack, alice: Agent, namespace: str
) -> None:
    await alice.store("One.")
    limits = {"calls_per_second": 0.01, "burst": 2}
    async with serving(stack.redis.url_of(SERVER), limits=limits, master_key=MASTER_KEY) as slow:
        async with slow.agent("alice", namespace) as agent:
            outcomes = [(await agent.raw("gpu_status")).is_error for _ in range(6)]
        assert outcomes.count(True) == 4
        entries = await flushed_entries(slow, stack.client, namespace)
    limited = [entry for entry in entries if entry["outcome"] == "rate_limited"]
    assert sum(int(entry.get("times", 1)) for entry in limited) == 4
    assert len(limited) < 4


async def test_stopping_server_writes_its_buffered_entries(stack: Stack, alice: Agent, namespace: str) -> None:
    await alice.store("One.")
    async with (
        serving(stack.redis.url_of(SERVER), master_key=MASTER_KEY) as server,
        server.agent("alice", namespace) as agent,
    ):
        await agent.call("gpu_status")
    assert [entry["op"] for entry in await read_entries(stack.client, namespace)] == ["store_memory", "gpu_status"]
    assert await is_sealed(stack.client, namespace)


async def test_frequent_reads_merge_and_name_their_ids(
    server: Server, stack: Stack, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "DETAILED", 3)
    held, ids = recorder.Recorder(), [new_id() for _ in range(9)]
    for number in range(9):
        outcome = "not_found" if number == 8 else "ok"
        entry = {"who": "alice", "op": "retrieve_memory", "ids": [ids[number]], "from": "here", "nonce": new_id()}
        held.add(namespace, {**entry, "outcome": outcome, "count": 1})
    held.add(namespace, {"who": "bob", "op": "gpu_status", "ids": [], "from": "here", "nonce": new_id()})
    early = [entry for batch in held.batches(merged=False) for entry in batch.entries]
    assert [(entry["who"], entry["ids"]) for entry in early] == [
        *(("alice", [memory]) for memory in ids[:3]),
        ("bob", []),
    ]
    assert held.some.is_set(), "merged entries wait"
    later = [entry for batch in held.batches() for entry in batch.entries][len(early) :]
    assert [(entry["outcome"], entry["times"], entry["count"], entry["ids"]) for entry in later] == [
        ("ok", 5, 5, ids[3:8]),
        ("not_found", 1, 1, [ids[8]]),
    ]


async def test_default_retention_deletes_nothing_by_number() -> None:
    assert AuditSettings().keep_entries == 0, "a flood of calls would delete the entries before it"
