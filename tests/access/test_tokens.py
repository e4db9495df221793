"""Bearer tokens: the holder acts as the token's agent, in its namespace and with its scopes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator

import httpx2
import pytest
import pytest_asyncio
from support.auth_helpers import INITIALIZE, issued, post, tool_call
from support.embedder_fixtures import wait_until
from support.settings_fixtures import run
from support.stack import Agent, Refused, Server, Stack, in_own_task, serving
from support.stdio import stdio_agent

from memory_core.records import token as tokens
from memory_core.records.access import SCOPES, Scope
from memory_core.records.keys import Keys, token_key
from memory_core.store import functions
from memory_server.access.tokens import list_tokens, revoke_token

ALL = ("read", "write", "tasks")
CHEAP = {
    "read": ["memory_stats", "get_agent_memories", "list_agents", "list_tasks", "get_shared_context", "gpu_status"],
    "write": [
        *("clear_memory", "store_memory", "update_memory"),
        *("share_context_with_agent", "revoke_shared_context", "answer_offer"),
    ],
    "tasks": ["get_pending_tasks", "register_agent", "distribute_task", "complete_task", "fail_task"],
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def token_server(stack: Stack) -> AsyncGenerator[Server]:
    """A server that requires tokens."""
    async with in_own_task(serving(stack.redis.url, auth={"mode": "tokens"}, embed_wait_seconds=15.0)) as server:
        yield server


def altered(token: str, position: int) -> str:
    """Replace one character of a token by another valid one."""
    return token[:position] + ("1" if token[position] != "1" else "2") + token[position + 1 :]


async def refusal_of(agent: Agent, tool: str, /, **arguments: object) -> tuple[str, str]:
    with pytest.raises(Refused) as refused:
        await agent.call(tool, **arguments)
    return refused.value.code, refused.value.text


# Authentication


async def test_token_holder_acts_as_its_agent_without_naming_it(token_server: Server, namespace: str) -> None:
    alice = await issued(token_server, "alice", namespace)
    response = await post(token_server, alice, INITIALIZE)
    session = {"Mcp-Session-Id": response.headers["mcp-session-id"]}
    stored = await post(token_server, alice, tool_call("store_memory", content="Mine."), **session)
    assert '"isError":false' in stored.text
    async with token_server.agent("alice", namespace, token=alice) as agent:
        assert await agent.search("Mine", mode="keyword") == ["Mine."]


async def test_every_invalid_token_gets_the_same_answer(token_server: Server, namespace: str) -> None:
    good = await issued(token_server, "alice", namespace)
    expired = await issued(token_server, "alice", namespace, seconds=0.001)
    revoked = await issued(token_server, "alice", namespace)
    await revoke_token(token_server.service.backend, revoked.split("_")[1])
    bad = [expired, revoked, altered(good, 5), altered(good, 40), good + "A", good[:-1], "rm_", "x" * 10_000]
    answers = [await post(token_server, token) for token in [None, *bad]]
    assert {answer.status_code for answer in answers} == {401}
    assert len({(answer.text, answer.headers["www-authenticate"]) for answer in answers}) == 1
    assert (await post(token_server, good)).status_code == 200


async def test_revoked_token_stops_working_mid_session(token_server: Server, namespace: str) -> None:
    token = await issued(token_server, "alice", namespace)
    session = {"Mcp-Session-Id": (await post(token_server, token)).headers["mcp-session-id"]}
    assert (await post(token_server, token, tool_call("gpu_status"), **session)).status_code == 200
    await revoke_token(token_server.service.backend, token.split("_")[1])
    assert (await post(token_server, token, tool_call("gpu_status"), **session)).status_code == 401


async def test_waiting_call_is_refused_when_its_token_is_revoked(token_server: Server, namespace: str) -> None:
    token, other = await issued(token_server, "alice", namespace), await issued(token_server, "bob", namespace)
    async with (
        token_server.agent("alice", namespace, token=token) as alice,
        token_server.agent("bob", namespace, token=other) as bob,
    ):
        waiting = asyncio.create_task(alice.raw("wait_for_events", timeout_seconds=20))
        await wait_until(lambda: has_waiting_call(token_server, namespace))
        await revoke_token(token_server.service.backend, token.split("_")[1])
        await bob.store("News for all.", visibility="public")
        answer = await waiting
    assert answer.is_error
    assert "News" not in str(answer)
    assert "unauthenticated" in str(answer)


async def test_token_expires_and_its_key_is_deleted(token_server: Server, stack: Stack, namespace: str) -> None:
    token = await issued(token_server, "alice", namespace, seconds=0.3)
    key = token_key(token.split("_")[1])
    assert 0 < await stack.client.pttl(key) <= 300
    await wait_until(lambda: is_gone(stack, key))
    assert (await post(token_server, token)).status_code == 401


async def test_expired_token_leaves_the_namespaces_list(token_server: Server, stack: Stack, namespace: str) -> None:
    token_id = (await issued(token_server, "alice", namespace, seconds=60)).split("_")[1]
    listed = await stack.client.zscore(Keys(namespace).tokens, token_id)
    assert listed == pytest.approx(await stack.client.pexpiretime(token_key(token_id)) / 1000, abs=0.01)


async def test_retried_issue_does_not_restore_a_revoked_token(
    token_server: Server, stack: Stack, namespace: str
) -> None:
    text = await issued(token_server, "alice", namespace)
    token_id, secret = tokens.parse(text) or ("", "")
    integrity = token_server.service.backend.integrity
    found = await tokens.load(stack.client, token_id, integrity)
    assert found is not None
    fields = [part for pair in found[0].fields(secret, integrity).items() for part in pair]
    await revoke_token(token_server.service.backend, token_id)
    expires_at = found[0].expires_at
    await functions.call(stack.client, "rm1_token_issue", [token_key(token_id)], fields=fields, expires_at=expires_at)
    assert (await post(token_server, text)).status_code == 401


async def has_waiting_call(server: Server, namespace: str) -> bool:
    return server.service.events.count(namespace) > 0


async def is_gone(stack: Stack, key: str) -> bool:
    return not await stack.client.exists(key)


async def test_redis_stores_no_token_or_secret(token_server: Server, stack: Stack, namespace: str) -> None:
    token = await issued(token_server, "alice", namespace)
    token_id, secret = tokens.parse(token) or ("", "")
    kept = await stack.client.hgetall(token_key(token_id))
    audit = await stack.client.xrange(Keys(namespace).audit)
    assert secret.encode() not in repr((kept, audit)).encode()
    assert [fields[b"op"] for _, fields in audit] == [b"token_issue"]


@pytest.mark.parametrize("probe", ["livez", "readyz"])
async def test_health_probes_need_no_token(token_server: Server, probe: str) -> None:
    async with httpx2.AsyncClient() as client:
        assert (await client.get(f"{token_server.url}/{probe}")).status_code == 200


# Declared names


@pytest.mark.parametrize(("agent", "team"), [("bob", None), (None, "other"), ("bob", "other")])
async def test_declared_name_that_differs_from_the_token_is_refused(
    token_server: Server, namespace: str, agent: str | None, team: str | None
) -> None:
    token = await issued(token_server, "alice", namespace)
    async with token_server.agent(agent or "alice", team or namespace, token=token) as client:
        code, text = await refusal_of(client, "memory_stats")
    assert code == "forbidden"
    assert "is not that of your token" in text


async def test_token_of_one_namespace_sees_nothing_of_another(token_server: Server, namespace: str) -> None:
    here, there = await issued(token_server, "alice", namespace), await issued(token_server, "alice", f"{namespace}-b")
    async with token_server.agent("alice", namespace, token=here) as agent:
        memory = await agent.store("Of this team only.", visibility="public")
    async with token_server.agent("alice", f"{namespace}-b", token=there) as agent:
        assert (await refusal_of(agent, "retrieve_memory", memory_id=memory))[0] == "not_found"


@pytest.mark.parametrize("other", ["bob here", "alice there"])
async def test_session_cannot_be_used_with_another_token(token_server: Server, namespace: str, other: str) -> None:
    alice = await issued(token_server, "alice", namespace)
    agent, where = ("bob", namespace) if other == "bob here" else ("alice", f"{namespace}-b")
    second = await issued(token_server, agent, where)
    opened = await post(token_server, alice)
    session = {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
    call = tool_call("store_memory", content="Whose is this?")
    assert (await post(token_server, second, call, **session)).status_code == 404
    assert (await post(token_server, None, call, **session)).status_code == 401
    async with token_server.agent("alice", namespace, token=alice) as first:
        assert await first.search("Whose", mode="keyword") == []


async def test_session_gives_a_weaker_token_no_extra_rights(token_server: Server, namespace: str) -> None:
    strong = await issued(token_server, "alice", namespace, ["admin"])
    weak = await issued(token_server, "alice", namespace, ["read"])
    session = {"Mcp-Session-Id": (await post(token_server, strong)).headers["mcp-session-id"]}
    call = tool_call("store_memory", content="By whom?")
    assert "scope write" in (await post(token_server, weak, call, **session)).text
    assert '"isError":false' in (await post(token_server, strong, call, **session)).text


# Scopes


@pytest.mark.parametrize("held", SCOPES)
async def test_scope_allows_only_its_tools_and_admin_allows_all(
    token_server: Server, namespace: str, held: Scope
) -> None:
    token = await issued(token_server, "alice", namespace, [held])
    async with token_server.agent("alice", namespace, token=token) as agent:
        for needed, names in CHEAP.items():
            for name in names:
                # The unknown argument gives an allowed caller an error, so that the call has no effect.
                code, text = await refusal_of(agent, name, nonsense=1)
                let_in = held in (needed, "admin")
                assert code == ("invalid_argument" if let_in else "forbidden"), name
                assert let_in or f"scope {needed}" in text, name


async def test_each_batch_operation_needs_its_scope(token_server: Server, namespace: str) -> None:
    token = await issued(token_server, "alice", namespace, ["read"])
    operations = [{"op": "memory_stats"}, {"op": "store_memory", "content": "No."}, {"op": "get_pending_tasks"}]
    async with token_server.agent("alice", namespace, token=token) as agent:
        answer = await agent.call("batch_operations", operations=operations)
    codes = [outcome.get("error", {}).get("code") for outcome in answer["results"]]
    assert codes == [None, "forbidden", "forbidden"]


async def test_every_tool_but_the_batch_needs_a_scope(token_server: Server, namespace: str) -> None:
    token = await issued(token_server, "alice", namespace, ["tasks"])
    async with token_server.agent("alice", namespace, token=token) as agent:
        for tool in (await agent.client.list_tools()).tools:
            code, _ = await refusal_of(agent, tool.name, nonsense=1)
            read_only = tool.annotations is not None and tool.annotations.read_only_hint
            assert code == "forbidden" if read_only else code in ("forbidden", "invalid_argument"), tool.name


@pytest.mark.parametrize("reads", [True, False])
async def test_without_read_scope_answers_contain_no_memories(
    token_server: Server, namespace: str, reads: bool
) -> None:
    text = "The parser is written in Rust."
    token = await issued(token_server, "alice", namespace, ["write", "tasks", *(["read"] if reads else [])])
    async with token_server.agent("alice", namespace, token=token) as agent:
        await agent.call("store_memory", content=text)
        assert bool((await agent.call("store_memory", content=f"{text} Yes."))["similar"]) == reads
        await agent.call("register_agent", agent_type="custom")
        await agent.call("distribute_task", description=text)
        (task,) = (await agent.call("get_pending_tasks"))["tasks"]
        assert bool(task["memories"]) == reads


async def test_resources_need_the_read_scope(token_server: Server, namespace: str) -> None:
    writer = await issued(token_server, "alice", namespace, ["write"])
    reader = await issued(token_server, "alice", namespace, ["read"])
    async with token_server.agent("alice", namespace, token=writer) as agent:
        uri = f"memory://{await agent.store('A resource.')}"
        with pytest.raises(Exception, match="scope read"):
            await agent.client.read_resource(uri)
    async with token_server.agent("alice", namespace, token=reader) as agent:
        assert "A resource." in str(await agent.client.read_resource(uri))


async def test_only_an_admin_may_write_for_others(token_server: Server, namespace: str) -> None:
    admin, plain = (
        await issued(token_server, "root", namespace, ["admin"]),
        await issued(token_server, "eve", namespace, ALL),
    )
    async with token_server.agent("root", namespace, token=admin) as agent:
        memory = await agent.store("For Alice.", agent_id="alice")
        assert await agent.search("Alice", mode="keyword") == []
    async with token_server.agent("eve", namespace, token=plain) as agent:
        assert (await refusal_of(agent, "store_memory", content="No.", agent_id="alice"))[0] == "forbidden"
    alice = await issued(token_server, "alice", namespace)
    async with token_server.agent("alice", namespace, token=alice) as agent:
        assert (await agent.call("retrieve_memory", memory_id=memory))["memory"]["content"] == "For Alice."


async def test_admin_acting_for_an_agent_sees_none_of_its_memories(token_server: Server, namespace: str) -> None:
    whole, root = (
        await issued(token_server, "alice", namespace),
        await issued(token_server, "root", namespace, ["admin"]),
    )
    async with (
        token_server.agent("alice", namespace, token=whole) as alice,
        token_server.agent("root", namespace, token=root) as admin,
    ):
        await alice.call("register_agent")
        text = "The vault opens with the code 4711."
        memory = await alice.store(text)
        stored = await admin.call("store_memory", content=text, agent_id="alice")
        assert (stored["similar"], stored.get("duplicate_of")) == ([], None)
        await admin.call("distribute_task", description="Open the vault with its code.", assign_to="alice")
        (task,) = (await admin.call("get_pending_tasks", agent_id="alice"))["tasks"]
        assert task["memories"] == []
        taking = {"agent_id": "alice", "memories": "transfer", "transfer_to": "root"}
        assert (await refusal_of(admin, "unregister_agent", **taking))[0] == "forbidden"
        assert (await alice.call("retrieve_memory", memory_id=memory))["memory"]["content"] == text


# Rate limits


async def test_rate_limited_agent_gets_retry_after_and_others_are_served(stack: Stack, namespace: str) -> None:
    limits = {"calls_per_second": 0.5, "burst": 3}
    async with (
        serving(stack.redis.url, limits=limits) as server,
        server.agent("hasty", namespace) as hasty,
        server.agent("calm", namespace) as calm,
    ):
        for _ in range(3):
            await hasty.call("gpu_status")
        with pytest.raises(Refused) as refused:
            await hasty.call("gpu_status")
        assert refused.value.code == "rate_limited"
        assert 0 < refused.value.error["retry_after"] <= 2
        await calm.call("gpu_status")


async def test_batch_counts_as_one_call_plus_its_operations(stack: Stack, namespace: str) -> None:
    limits = {"calls_per_second": 0.001, "burst": 5}
    async with serving(stack.redis.url, limits=limits) as server, server.agent("hasty", namespace) as hasty:
        await hasty.call("batch_operations", operations=[{"op": "gpu_status"}] * 3)
        await hasty.call("gpu_status")
        assert (await refusal_of(hasty, "gpu_status"))[0] == "rate_limited"


# stdio


async def test_stdio_token_is_checked_for_each_call(token_server: Server, stack: Stack, namespace: str) -> None:
    token = await issued(token_server, "alice", namespace, ["read"])
    async with stdio_agent("alice", MEMORY_TOKEN=token, REDIS_URL=stack.redis.url) as agent:
        await agent.call("memory_stats")
        assert (await refusal_of(agent, "store_memory", content="No."))[0] == "forbidden"
        await revoke_token(token_server.service.backend, token.split("_")[1])
        assert (await refusal_of(agent, "memory_stats"))[0] == "unauthenticated"


async def test_stdio_token_of_another_agent_or_namespace_is_refused(
    token_server: Server, stack: Stack, namespace: str
) -> None:
    token = await issued(token_server, "alice", namespace)

    async def code_of(agent: str, *options: str) -> str:
        async with stdio_agent(agent, *options, MEMORY_TOKEN=token, REDIS_URL=stack.redis.url) as client:
            return (await refusal_of(client, "memory_stats"))[0]

    assert await asyncio.gather(code_of("bob"), code_of("alice", "--namespace", "other")) == ["forbidden"] * 2


# Command line


async def test_cli_issues_lists_and_revokes_tokens(token_server: Server, stack: Stack, namespace: str) -> None:
    async def console(*command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "memory_server", "agents", *command),
            env={**os.environ, "REDIS_URL": stack.redis.url},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        return output.decode().strip()

    token = await console("token", "alice", "--namespace", namespace, "--scope", "read", "--expires", "1h")
    assert (await post(token_server, token)).status_code == 200
    token_id = token.split("_")[1]
    listed = await console("tokens", "--namespace", namespace)
    assert f"{token_id}  alice  read" in listed
    assert token not in listed
    await console("revoke", token_id)
    assert (await post(token_server, token)).status_code == 401
    assert [one.revoked for one in await list_tokens(token_server.service.backend, namespace)] == [True]
    assert [fields[b"op"] for _, fields in await stack.client.xrange(Keys(namespace).audit)] == [
        b"token_issue",
        b"token_revoke",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["alice", "--expires", "soon"], "is not a lifetime"),
        (["alice", "--scope", "read,root"], "is not a scope"),
        (["alice", "--scope", ""], "no scope"),
    ],
)
def test_cli_refuses_invalid_token_options(options: list[str], message: str) -> None:
    code, output = run("agents", "token", *options)
    assert code
    assert message in output
