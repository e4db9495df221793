"""What the dashboard shows on the real stack: to its operator all figures, to an agent no more than its tools."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from urllib.parse import urlsplit

import httpx2
import pytest
from support import dashboard_fixtures
from support.audit_helpers import flushed_entries
from support.auth_helpers import issued
from support.dashboard_helpers import Browser, events_until, log_in, operate
from support.embedder_fixtures import wait_until
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Agent, Server, Stack

from memory_core.records.authority import ALLOWED_BY
from memory_core.records.keys import Keys, operator_key
from memory_core.records.names import check_name
from memory_server.access import tokens
from memory_server.access.operator_login import admit_once

guarded = dashboard_fixtures.guarded
page = dashboard_fixtures.page
stranger = dashboard_fixtures.stranger


# The operator


async def test_a_one_time_url_works_once(stranger: Browser, namespace: str) -> None:
    key = await operate(stranger, namespace)
    about = (await stranger.get("api/session")).json()
    assert (about["operator"], about["namespace"], about["agent"]) == (True, namespace, "operator")
    async with httpx2.AsyncClient() as client:
        again = await Browser(stranger.server, client).post("login", {"key": key})
    assert (again.status_code, "set-cookie" in again.headers) == (401, False)


async def test_an_operator_of_one_namespace_is_none_of_another(
    stranger: Browser, page: Browser, namespace: str
) -> None:
    for visitor in (page, stranger):
        await operate(visitor, namespace)
        assert (await visitor.get("api/session")).json()["operator"] is True
        visitor.scope = f"?agent=alice&namespace={namespace}-other"
    assert (await page.get("api/session")).json()["operator"] is False
    assert await page.refused("dashboard_audit") == (403, "forbidden")
    assert (await stranger.get("api/session")).json()["login"] is True


async def test_operator_page_that_names_an_agent_acts_as_that_agent(page: Browser, bob: Agent, namespace: str) -> None:
    await operate(page, namespace)
    assert (await page.get("api/session")).json()["agent"] == "operator"
    page.scope = f"?agent=alice&namespace={namespace}"
    about = (await page.get("api/session")).json()
    assert (about["agent"], about["operator"]) == ("alice", False)
    assert await page.refused("dashboard_audit") == (403, "forbidden")


async def test_operator_lists_the_public_memories_of_all_agents(stranger: Browser, bob: Agent, namespace: str) -> None:
    await bob.store("Bob's secret plan", wait=False)
    await bob.store("Bob's known plan", visibility="public", wait=False)
    await operate(stranger, namespace)
    (listed,) = (await stranger.call("get_agent_memories"))["memories"]
    assert listed["content"] == "Bob's known plan"


async def test_reads_of_an_operator_do_not_count_as_uses(
    stranger: Browser, stack: Stack, bob: Agent, namespace: str
) -> None:
    memory = await bob.store("Bob's known plan", visibility="public", wait=False)
    await operate(stranger, namespace)
    for _ in range(3):
        await stranger.call("retrieve_memory", memory_id=memory)
    async with stranger.server.agent("bob", namespace, token=await issued(stranger.server, "bob", namespace)) as agent:
        await agent.call("retrieve_memory", memory_id=memory)

    async def is_counted() -> bool:
        return await stack.client.hget(Keys(namespace).use(memory), "count") is not None

    await wait_until(is_counted)
    assert await stack.client.hget(Keys(namespace).use(memory), "count") == b"1"


async def test_operator_of_the_name_of_an_agent_reads_public_texts_only(
    stranger: Browser, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "check_agent_name", check_name)  # an earlier release issued tokens for this name
    async with stranger.server.agent(
        "operator", namespace, token=await issued(stranger.server, "operator", namespace)
    ) as agent:
        memory = await agent.store("The operator's own secret", wait=False)
        task = await agent.call("distribute_task", description="Errand", payload={"secret": 1})
    await operate(stranger, namespace)
    assert await stranger.refused("retrieve_memory", memory_id=memory) == (404, "not_found")
    assert (await stranger.call("semantic_search", query="secret", mode="keyword"))["hits"] == []
    assert "payload" not in (await stranger.call("get_task", task_id=task["task_id"]))["task"]


async def test_session_names_what_its_page_may_do(stranger: Browser, namespace: str) -> None:
    await operate(stranger, namespace)
    may = set((await stranger.get("api/session")).json()["may"])
    assert may == {effect for effect, powers in ALLOWED_BY.items() if "operator" in powers}
    await log_in(stranger, "alice", namespace, ["write"])
    assert "see tasks" not in (await stranger.get("api/session")).json()["may"]


async def test_of_many_who_show_a_key_at_once_one_gets_in(stranger: Browser, namespace: str) -> None:
    key = await admit_once(stranger.server.service.backend, namespace)

    async def show() -> int:
        async with httpx2.AsyncClient() as client:
            return (await Browser(stranger.server, client).post("login", {"key": key})).status_code

    assert sorted(await asyncio.gather(*(show() for _ in range(8)))) == [200] + [401] * 7


async def test_a_wrong_or_expired_key_is_refused_and_spends_nothing(
    stranger: Browser, stack: Stack, namespace: str
) -> None:
    key = await admit_once(stranger.server.service.backend, namespace)
    key_id = key.partition("_")[0]
    for wrong in (key[:-1] + ("A" if key[-1] != "A" else "B"), f"{key_id}_", key_id, "", key + "A"):
        assert (await stranger.post("login", {"key": wrong})).status_code == 401
    assert 0 < await stack.client.ttl(operator_key(key_id)) <= 3600
    assert key.partition("_")[2] not in (await stack.client.get(operator_key(key_id)) or b"").decode()
    assert (await stranger.post("login", {"key": key})).status_code == 200


async def test_the_console_prints_an_address_that_opens_the_operators_view(
    stranger: Browser, stack: Stack, alice: Agent, namespace: str
) -> None:
    await alice.store("One.")
    port = str(urlsplit(stack.server.url).port)
    command = ["-m", "memory_server", "dashboard", "--namespace", namespace, "--port", port, "--json"]
    environment = {**os.environ, "REDIS_URL": stack.redis.url_of(SERVER), "MEMORY_MASTER_KEY": MASTER_KEY}
    console = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, env=environment
    )
    url = json.loads((await console.communicate())[0])["url"]
    page, _, key = url.partition("#operator=")
    assert page == f"http://127.0.0.1:{port}/"
    assert (await stranger.log_in({"key": key})).status_code == 200
    assert (await stranger.get("api/session")).json()["namespace"] == namespace


async def test_who_is_no_operator_sees_no_audit_and_nothing_of_others(
    stranger: Browser, page: Browser, bob: Agent, namespace: str
) -> None:
    await log_in(stranger, "alice", namespace)
    hidden = await bob.store("Bob's secret plan", wait=False)
    await bob.call("distribute_task", description="Bob's errand")
    for tool in ("dashboard_audit", "dashboard_audit_check"):
        assert await stranger.refused(tool) == (403, "forbidden")
        assert await page.refused(tool) == (403, "forbidden")
    for seen in (page, stranger):
        assert (await seen.call("dashboard_tasks"))["tasks"] == []
        assert (await seen.call("dashboard_census"))["total"] == 0
        assert (await seen.call("dashboard_snippets", memory_ids=[hidden]))["memories"] == []
        assert (await seen.call("dashboard_map"))["ids"] == []
        assert await seen.refused("retrieve_memory", memory_id=hidden) == (404, "not_found")


async def test_the_operator_counts_everything_and_reads_nobodys_private_memories(
    stranger: Browser, bob: Agent, namespace: str
) -> None:
    hidden = await bob.store("Bob's secret plan", memory_type="code", wait=False)
    await operate(stranger, namespace)
    census = await stranger.call("dashboard_census")
    assert (census["total"], census["by_type"], census["by_agent"]) == (1, {"code": 1}, {"bob": 1})
    assert sum(day["stored"] for day in census["growth"]) == 1
    assert await stranger.refused("retrieve_memory", memory_id=hidden) == (404, "not_found")
    assert (await stranger.call("semantic_search", query="secret plan", mode="keyword"))["hits"] == []
    assert (await stranger.call("dashboard_snippets", memory_ids=[hidden]))["memories"] == []


async def test_operator_sees_all_tasks_and_an_admin_token_retries_dead_ones(
    stranger: Browser, bob: Agent, namespace: str
) -> None:
    await bob.call("register_agent")
    task = await bob.call("distribute_task", description="Bob's errand", assign_to="bob", max_retries=0)
    held = (await bob.call("get_pending_tasks", with_memories=0, wait_seconds=10))["tasks"][0]
    await bob.call("fail_task", task_id=task["task_id"], lease_token=held["lease_token"], error="rain")
    await operate(stranger, namespace)
    found = {one["task_id"]: one["state"] for one in (await stranger.call("dashboard_tasks"))["tasks"]}
    assert found == {task["task_id"]: "dead"}
    assert await stranger.refused("requeue_task", task_id=task["task_id"]) == (403, "forbidden")
    await log_in(stranger, "root", namespace, ["admin"])
    assert (await stranger.call("requeue_task", task_id=task["task_id"]))["state"] == "pending"


async def test_operator_sees_all_grants_and_an_admin_token_revokes_them(
    stranger: Browser, alice: Agent, bob: Agent, namespace: str
) -> None:
    await alice.call("register_agent")
    await bob.call("register_agent")
    shown = await alice.store("For Bob", context="plans", wait=False)
    grant = await alice.call("share_context_with_agent", target_agent="bob", context="plans")
    await operate(stranger, namespace)
    (found,) = (await stranger.call("dashboard_grants"))["grants"]
    assert (found["id"], found["from_agent"], found["to_agent"]) == (grant["grant_id"], "alice", "bob")
    assert await stranger.refused("revoke_shared_context", grant_id=grant["grant_id"]) == (403, "forbidden")
    await log_in(stranger, "root", namespace, ["admin"])
    await stranger.call("revoke_shared_context", grant_id=grant["grant_id"])
    assert (await stranger.call("dashboard_grants"))["grants"] == []
    assert shown not in str(await bob.call("get_shared_context"))


async def test_the_audit_is_read_by_pages_with_proofs_and_checked(
    server: Server, page: Browser, alice: Agent, namespace: str
) -> None:
    ids = [await alice.store(f"Number {number}", wait=False) for number in range(5)]
    await operate(page, namespace)
    first = await page.call("dashboard_audit", op="store_memory", limit=3)
    rest = await page.call("dashboard_audit", op="store_memory", limit=3, cursor=first["next_cursor"])
    entries = [*first["entries"], *rest["entries"]]
    assert [entry["ids"] for entry in entries] == [[memory_id] for memory_id in reversed(ids)]
    assert {(entry["who"], entry["proof"]) for entry in entries} == {("alice", "ok")}
    assert (await page.call("dashboard_audit", names=ids[0]))["entries"][-1]["ids"] == [ids[0]]
    verdict = await page.call("dashboard_audit_check")
    assert (verdict["ok"], verdict["keyed"], verdict["entries"] >= 5) == (True, True, True)


async def test_an_audit_that_was_tampered_with_is_told(
    page: Browser, alice: Agent, stack: Stack, namespace: str
) -> None:
    await alice.store("Kept", wait=False)
    await operate(page, namespace)
    await stack.client.xadd(f"rm:{{{namespace}}}:audit", {"n": "77", "who": "mallory", "op": "store_memory"})
    verdict = await page.call("dashboard_audit_check")
    assert not verdict["ok"]
    assert "mallory" in [entry["who"] for entry in (await page.call("dashboard_audit"))["entries"]]


# What goes through it


async def test_calls_of_the_dashboard_stand_in_the_audit_like_any_other(
    server: Server, page: Browser, stack: Stack, namespace: str
) -> None:
    stored = await page.call("store_memory", content="<script>alert(1)</script>", wait=False)
    await page.refused("retrieve_memory", memory_id="0" * 26)
    await page.call("dashboard_snippets", memory_ids=[stored["memory_id"]])
    await page.refused("dashboard_audit")
    entries = await flushed_entries(server, stack.client, namespace)
    event_shown = [(entry["op"], entry["outcome"], entry["ids"]) for entry in entries]
    assert event_shown == [
        ("store_memory", "ok", stored["memory_id"]),
        ("retrieve_memory", "not_found", "0" * 26),
        ("dashboard_snippets", "ok", stored["memory_id"]),
        ("dashboard_audit", "forbidden", ""),
    ]


async def test_content_comes_back_as_it_is_and_only_as_json(page: Browser) -> None:
    evil = "</script><img src=x onerror=alert(1)>\u2028{{7*7}}"
    stored = await page.call("store_memory", content=evil, wait=False)
    response = await page.post("call/retrieve_memory", {"memory_id": stored["memory_id"]})
    assert response.headers["content-type"] == "application/json"
    assert response.json()["memory"]["content"] == evil


async def test_the_map_shows_what_is_alike_together_and_forgets_what_is_deleted(page: Browser) -> None:
    texts = [f"The {animal} sleeps in the {place}." for animal in ("cat", "dog") for place in ("barn", "garden")]
    texts += [f"Port {number} of the TCP server is closed." for number in range(4)]
    ids = [(await page.call("store_memory", content=text, memory_type="code"))["memory_id"] for text in texts]

    async def is_drawn() -> bool:
        return len((await page.call("dashboard_map"))["ids"]) == len(ids)

    await wait_until(is_drawn)
    found = await page.call("dashboard_map")
    assert (found["agents"], found["types"], found["total"]) == (["alice"], ["code"], len(ids))
    across = dict(zip(found["ids"], found["x"], strict=True))
    animals, ports = [[across[one] for one in part] for part in (ids[:4], ids[4:])]
    assert max(animals) < min(ports) or max(ports) < min(animals)
    await page.call("clear_memory", memory_ids=[ids[0]])
    assert ids[0] not in (await page.call("dashboard_map"))["ids"]


async def test_a_revoked_grant_takes_its_memories_off_the_map_at_once(page: Browser, bob: Agent, alice: Agent) -> None:
    await alice.call("register_agent")
    shown = await bob.store("Seen by a grant.", context="plans")
    grant = await bob.call("share_context_with_agent", target_agent="alice", context="plans")

    async def is_seen() -> bool:
        return shown in (await page.call("dashboard_map"))["ids"]

    await alice.store("My own.")  # an agent that owns nothing is granted nothing
    await wait_until(is_seen)
    await bob.call("revoke_shared_context", grant_id=grant["grant_id"])
    assert shown not in (await page.call("dashboard_map"))["ids"]
    assert (await page.call("dashboard_snippets", memory_ids=[shown]))["memories"] == []


# What happens meanwhile


async def test_the_stream_tells_an_agents_own_doings_and_nothing_of_others(
    page: Browser, alice: Agent, bob: Agent
) -> None:
    secret = await bob.store("Bob's own", wait=False)
    before = await alice.store("Alice's first", wait=False)
    assert before in [event["id"] for event in await events_until(page, before)]
    listening = asyncio.create_task(events_until(page, "carol"))
    await asyncio.sleep(0)
    other = await bob.store("Bob's again", wait=False)
    async with page.server.agent("carol", page.scope.partition("namespace=")[2]) as carol:
        await carol.call("register_agent")
    ids = {event["id"] for event in await listening}
    assert "carol" in ids
    assert not ids & {secret, other}


async def test_the_operators_stream_tells_everything_and_ends_with_the_session(
    stranger: Browser, bob: Agent, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await operate(stranger, namespace)
    stored = await bob.store("Bob's own", wait=False)
    (event_shown,) = [event for event in await events_until(stranger, stored) if event["id"] == stored]
    assert (event_shown["kind"], event_shown["op"], event_shown["by"]) == ("memory", "stored", "bob")
    assert "Bob's own" not in json.dumps(event_shown)
    async with stranger.stream() as response:
        lines = response.aiter_lines()
        while "event: recent" not in await anext(lines):
            pass
        await stranger.post("logout")
        await bob.store("Unseen", wait=False)
        rest = [line async for line in lines]
    assert "event: closed" in rest
    assert not any("happened" in line for line in rest)


async def test_all_files_of_the_page_are_there_and_none_names_another_host(page: Browser) -> None:
    text = (await page.get("")).text
    files = [part.split('"')[0] for part in text.replace('href="', 'src="').split('src="')[1:]]
    assert len(files) > 8
    for file in files:
        response = await page.get(file)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(("text/", "image/svg"))
    assert "//" not in text.replace("<!doctype", "")
    assert (await page.get("static/../routes.py")).status_code == 404
    assert (await page.get("static/%2e%2e/routes.py")).status_code == 404
