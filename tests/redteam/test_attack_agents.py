"""Attacks by agents on consent, private texts and the size of answers, with valid credentials."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError
from support.sharing_helpers import LABELS, SECRET, refusal, share
from support.stack import MASTER_KEY, Agent, Server, Stack, answer_of, serving
from support.team_helpers import claim, register, submit

from memory_core.records.keys import NAMESPACES, Keys
from memory_server.transfer.importer import ImportOptions, import_path

pytestmark = pytest.mark.redteam


async def offer_of(agent: Agent) -> dict[str, Any]:
    """Return the only offer that waits for an agent."""
    (offer,) = (await agent.call("get_shared_context"))["offers"]
    return offer


# Consent: an offer that changes after it was read


async def test_offer_accepted_as_read_gives_no_write(alice: Agent, bob: Agent) -> None:
    await register(alice)
    await register(bob)
    victim = await bob.store(SECRET, **LABELS)
    await share(alice, "bob", context="island", permission="read", bidirectional=True)
    seen = await offer_of(bob)
    assert seen["permission"] == "read"
    await share(alice, "bob", context="island", permission="write", bidirectional=True)
    assert (await refusal(bob, "answer_offer", offer_id=seen["id"]))[0] == "not_found"
    assert (await refusal(alice, "update_memory", memory_id=victim, content="Forged."))[0] == "not_found"
    assert (await offer_of(bob))["permission"] == "write"


@pytest.mark.parametrize("bidirectional", [True, False])
async def test_offer_accepted_for_an_hour_gives_no_more(alice: Agent, bob: Agent, bidirectional: bool) -> None:
    await register(alice)
    await register(bob)
    await share(alice, "bob", context="island", expires_in_seconds=3600, bidirectional=True)
    seen = await offer_of(bob)
    await share(alice, "bob", context="island", bidirectional=bidirectional)
    answer = (await bob.raw("answer_offer", offer_id=seen["id"])).structured_content or {}
    if bidirectional:
        assert answer["error"]["code"] == "not_found"
    else:
        assert answer["expires_at"] is not None


# Private texts that figures confirm


async def test_routing_figures_do_not_confirm_a_private_task(
    server: Server, namespace: str, alice: Agent, bob: Agent
) -> None:
    private = "Pay the ransom of 40,000 in coins to the pirates of Tortuga by Friday noon."
    await register(alice)
    await register(bob)
    task = (await submit(alice, private, assign_to="bob"))["task_id"]
    held = await claim(bob)
    await bob.call("complete_task", task_id=task, lease_token=held["lease_token"])
    async with server.agent("carol", namespace) as carol:
        assert (await refusal(carol, "get_task", task_id=task))[0] == "not_found"
        await asyncio.sleep(0.3)  # the roster is cached
        answer = await submit(carol, private, assign_to="bob")
        assert [one["closeness"] for one in answer["why"]["considered"]] == [0.0]


async def test_public_memory_does_not_count_the_private_ones(alice: Agent, bob: Agent) -> None:
    shown = [await alice.store("The harbour opens.", visibility="public", context="port")]
    await alice.store("The harbour master takes bribes.", context="port")
    shown.append(await alice.store("The harbour closes.", visibility="public", context="port"))
    memories = [(await bob.call("retrieve_memory", memory_id=one))["memory"] for one in shown]
    assert [memory.get("seq") for memory in memories] == [None, None]
    assert (await alice.call("retrieve_memory", memory_id=shown[1]))["memory"]["seq"] == 3


async def test_public_memory_does_not_tell_who_else_reads_it(server: Server, namespace: str, alice: Agent) -> None:
    public = await alice.store("The harbour opens.", visibility="public")
    async with server.agent("carol", namespace) as carol, server.agent("dave", namespace) as dave:
        await carol.call("retrieve_memory", memory_id=public)
        await asyncio.sleep(1.5)
        answer = await dave.call("retrieve_memory", memory_id=public)
        assert (answer["access_count"], answer.get("last_access")) == (0, None)


async def test_error_of_a_task_is_for_its_parties(server: Server, namespace: str, alice: Agent, bob: Agent) -> None:
    await register(alice)
    await register(bob)
    task = (await submit(alice, max_retries=0))["task_id"]
    worker = bob if (await bob.call("get_pending_tasks", claim=False))["tasks"] else alice
    held = await claim(worker)
    await worker.call("fail_task", task_id=task, lease_token=held["lease_token"], error=SECRET)
    async with server.agent("carol", namespace) as carol:
        await register(carol)
        shown = await carol.call("get_task", task_id=task)
        assert SECRET not in json.dumps(shown)
    assert (await alice.call("get_task", task_id=task))["task"]["error"] == SECRET


# The next holder of a name


async def test_events_of_a_former_holders_task_reach_no_new_holder(alice: Agent, bob: Agent) -> None:
    await register(alice)
    await register(bob)
    task = (await submit(alice, "Dig out the chest.", assign_to="bob"))["task_id"]
    held = await claim(bob)
    await alice.call("unregister_agent")
    await register(alice)
    cursor = (await alice.call("wait_for_events", timeout_seconds=0))["cursor"]
    await bob.call("complete_task", task_id=task, lease_token=held["lease_token"], result="Gold.")
    events = (await alice.call("wait_for_events", cursor=cursor, timeout_seconds=0))["events"]
    assert [event for event in events if event["id"] == task] == []


async def test_events_of_a_former_holders_transfer_reach_no_new_holder(alice: Agent, bob: Agent) -> None:
    await register(alice)
    await register(bob)
    await alice.store(SECRET)
    offer = (await alice.call("unregister_agent", memories="transfer", transfer_to="bob"))["offer_id"]
    await register(alice)
    cursor = (await alice.call("wait_for_events", timeout_seconds=0))["cursor"]
    await bob.call("answer_offer", offer_id=offer)
    events = (await alice.call("wait_for_events", cursor=cursor, timeout_seconds=0))["events"]
    assert [event for event in events if event["id"] == offer] == []


async def test_former_holders_lease_looks_unknown_to_a_new_holder(alice: Agent, bob: Agent) -> None:
    await register(alice)
    await register(bob)
    task = (await submit(bob, "Dig out the chest.", assign_to="alice"))["task_id"]
    held = await claim(alice)
    await alice.call("complete_task", task_id=task, lease_token=held["lease_token"])
    await alice.call("unregister_agent")
    await register(alice)
    for tool, more in (("complete_task", {}), ("fail_task", {"error": "x"})):
        token = held["lease_token"]
        assert (await refusal(alice, tool, task_id=task, lease_token=token, **more))[0] == "not_found"


# Answers without bound, and what a read creates


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("memory_stats", {}),
        ("gpu_status", {}),
        ("find_similar_memories", {"memory_id": "01arz3ndektsv4rrffq69g5fav"}),
        ("get_pending_tasks", {"claim": False}),
        ("wait_for_events", {"timeout_seconds": 0}),
        ("wait_for_events", {"timeout_seconds": 0, "query": "gold"}),
        ("get_shared_context", {}),
        ("get_agent_memories", {}),
        ("semantic_search", {"query": "gold"}),
        ("list_agents", {}),
        ("clear_memory", {"dry_run": True, "tags": ["x"]}),
    ],
)
async def test_reading_creates_no_namespace(
    stack: Stack, alice: Agent, namespace: str, tool: str, arguments: dict[str, Any]
) -> None:
    await alice.raw(tool, **arguments)
    assert not await stack.client.sismember(NAMESPACES, namespace)
    keys = [key async for key in stack.client.scan_iter(f"rm:{{{namespace}}}:*")]
    lasting = {key for key in keys if await stack.client.ttl(key) == -1}
    assert lasting <= {Keys(namespace).audit.encode(), Keys(namespace).counters.encode()}  # calls are audited


async def test_earlier_failures_do_not_flood_the_next_worker(stack: Stack, namespace: str) -> None:
    text = "x" * 16_000
    quick = {"backoff_seconds": 0.01, "backoff_most_seconds": 0.01}
    async with serving(stack.redis.url, tasks=quick) as server, server.agent("alice", namespace) as alice:
        await register(alice)
        task = (await submit(alice, assign_to="alice", max_retries=40))["task_id"]
        for number in range(30):
            (held,) = (await alice.call("get_pending_tasks", wait_seconds=5))["tasks"]
            texts = {"error": f"{number} {text}", "handoff": f"{number} {text}"}
            await alice.call("fail_task", task_id=task, lease_token=held["lease_token"], **texts)
        answer = await alice.raw("get_pending_tasks", wait_seconds=5)
        (held,) = answer_of(answer)["tasks"]
        assert len(answer.model_dump_json()) < 150_000
        assert held["handoff"].startswith("29 x")
        assert "get_task" in answer_of(answer)["reason"]
        assert len((await alice.raw("get_task", task_id=task)).model_dump_json()) < 300_000


async def test_credential_in_metadata_is_not_handed_out_with_a_task(alice: Agent) -> None:
    about = "Restore the staging database from the nightly backup of the harbour office."
    await register(alice)
    await alice.store(about, metadata={"password": "hunter2!Xy7"})
    await submit(alice, about)
    (task,) = (await alice.call("get_pending_tasks"))["tasks"]
    assert "hunter2" not in json.dumps(task)


async def test_unknown_names_are_echoed_in_part_only(alice: Agent) -> None:
    name = "z" * 2000
    for attempt in (alice.client.get_prompt(name), alice.client.read_resource(f"nothing://{name}")):
        with pytest.raises(MCPError) as error:
            await attempt
        assert str(error.value).count("z") <= 80
        assert json.dumps(error.value.error.data, default=str).count("z") <= 80


# The policy on credentials


@pytest.mark.parametrize("policy", ["redact", "refuse", "seal"])
async def test_credentials_are_found_behind_many_others_and_in_names(stack: Stack, namespace: str, policy: str) -> None:
    real = "ghp_" + "R3a1" * 9
    many = "\n".join(f"token {n}: ghp_{n:036d}" for n in range(150)) + f"\nand {real}"
    async with (
        serving(stack.redis.url, secrets=policy, master_key=MASTER_KEY) as server,
        server.agent("alice", namespace) as alice,
    ):
        for arguments in ({"content": many}, {"content": "Keys.", "metadata": {real: 1}}):
            answer = (await alice.raw("store_memory", **arguments)).structured_content or {}
            if policy == "refuse":
                assert answer["error"]["code"] == "invalid_argument"
                continue
            stored = answer["memory_id"]
            raw = await stack.client.hgetall(f"rm:{{{namespace}}}:mem:{stored}")
            assert real.encode() not in b"".join(raw.values())
            shown = json.dumps(await alice.call("retrieve_memory", memory_id=stored))
            assert (real in shown) == (policy == "seal")


async def test_labels_and_metadata_count_against_a_budget(alice: Agent, bob: Agent) -> None:
    await register(bob)
    bulky = {"tags": [f"{n:02}{'t' * 200}" for n in range(30)], "metadata": {"m": "m" * 10_000}}
    for number in range(10):
        await alice.store(f"Harbour note {number}.", context="port", visibility="public", wait=False, **bulky)
    await share(alice, "bob", context="port")
    private = [await alice.store(f"Harbour log {n}.", context="port", wait=False, **bulky) for n in range(10)]
    answer = await bob.call("get_shared_context", max_tokens=8000)
    assert 0 < len(answer["memories"]) < 3
    assert answer["more"]
    seen, cursor = list[str](), None
    for _ in range(12):
        page = await bob.call("get_shared_context", max_tokens=8000, since=cursor or 0)
        seen += [shown["memory"]["memory_id"] for shown in page["memories"]]
        cursor = page["next_cursor"]
        if not page.get("more"):
            break
    assert seen == private
    found = await bob.call("semantic_search", query="harbour note", limit=10, max_tokens=8000)
    assert 0 < len(found["hits"]) < 3
    tiny = await bob.call("get_shared_context", max_tokens=10)
    assert len(json.dumps(tiny["memories"])) < 1500


async def test_grants_nobody_asked_for_do_not_flood_an_answer(alice: Agent, bob: Agent) -> None:
    await register(bob)
    for number in range(40):
        tags = [f"{number:02}{n:02}{'t' * 230}" for n in range(12)]
        await share(alice, "bob", tags=tags, note="n" * 1000)
    answer = await bob.raw("get_shared_context")
    assert len(answer.model_dump_json()) < 200_000
    assert "not listed" in answer_of(answer)["reason"]
    assert answer_of(answer)["granted_to_me"]


async def test_results_do_not_flood_the_list_of_tasks(alice: Agent, bob: Agent) -> None:
    await register(alice)
    await register(bob, max_tasks=20)
    for number in range(15):
        task = (await submit(alice, f"Task {number}.", assign_to="bob"))["task_id"]
        token = (await claim(bob))["lease_token"]
        await bob.call("complete_task", task_id=task, lease_token=token, result="r" * 60_000)
    answer = await alice.raw("list_tasks")
    assert len(answer.model_dump_json()) < 200_000
    assert len(answer_of(answer)["tasks"]) == 15
    assert "get_task" in answer_of(answer)["reason"]


async def test_import_of_foreign_notes_applies_the_policy(stack: Stack, namespace: str, tmp_path: Path) -> None:
    real = "ghp_" + "R3a1" * 9
    (tmp_path / "notes.md").write_text(f"# Keys\n\nThe deploy token is {real}.\n")
    async with serving(stack.redis.url, secrets="redact", master_key=MASTER_KEY) as server:
        options = ImportOptions(agent="alice")
        await import_path(server.service, namespace, tmp_path / "notes.md", options)
        async with server.agent("alice", namespace) as alice:
            shown = json.dumps(await alice.call("get_agent_memories"))
    assert "Keys" in shown
    assert real not in shown


async def test_answer_of_a_batch_is_bounded(alice: Agent) -> None:
    stores = [
        {"op": "store_memory", "content": f"Note {n}.", "metadata": {"m": "m" * 16_000}, "wait": False}
        for n in range(100)
    ]
    assert (await alice.call("batch_operations", operations=stores))["failed"] == 0
    page = await alice.call("get_agent_memories", limit=1)
    read = {"op": "retrieve_memory", "memory_id": page["memories"][0]["memory_id"], "max_tokens": 0}
    operations: list[dict[str, Any]] = (
        [read] * 950 + [{"op": "get_agent_memories", "limit": 100}] * 49 + [{"op": "store_memory", "content": "Last."}]
    )
    answer = await alice.call("batch_operations", operations=operations)
    assert len(json.dumps(answer)) < 25_000_000
    assert answer["results"][0]["ok"]
    codes = {outcome["error"]["code"] for outcome in answer["results"] if not outcome["ok"]}
    assert (codes, answer["results"][-1]["ok"]) == ({"skipped"}, False)
    assert (await alice.call("get_agent_memories"))["total"] == 100


async def test_deletions_before_a_grant_stay_private(alice: Agent, bob: Agent) -> None:
    await register(bob)
    gone = await alice.store(SECRET, **LABELS)
    await alice.call("clear_memory", memory_ids=[gone])
    kept = await alice.store("The map is in the attic.", **LABELS)
    await share(alice, "bob", context="island")
    events = (await bob.call("wait_for_events", cursor="0-0", kinds=["memory"], timeout_seconds=0))["events"]
    assert {event["id"] for event in events} == {kept}
    await alice.call("clear_memory", memory_ids=[kept])
    events = (await bob.call("wait_for_events", cursor="0-0", kinds=["memory"], timeout_seconds=0))["events"]
    assert [(event["op"], event["id"]) for event in events] == [("deleted", kept)]


async def test_offer_of_others_looks_unknown_to_a_newcomer(
    server: Server, namespace: str, alice: Agent, bob: Agent
) -> None:
    await register(bob)
    grant = await share(alice, "bob", context="island", bidirectional=True)
    async with server.agent("carol", namespace) as carol:
        for known in (grant, (await offer_of(bob))["id"]):
            assert (await refusal(carol, "answer_offer", offer_id=known))[0] == "not_found"
