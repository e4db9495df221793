"""A process without the key of a signed namespace is refused at once, and writes nothing there."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from support.audit_helpers import read_entries
from support.redis_users import SERVER
from support.sharing_helpers import refusal
from support.stack import Stack, serving
from support.transfer_helpers import Shell

from memory_core.crypto.keyring import load_keyring, new_key
from memory_core.errors import SignedElsewhere
from memory_core.records.keys import Keys
from memory_core.settings.settings import Settings
from memory_core.store.signer import check_signer

OLD, NEW = new_key(), new_key()


@pytest_asyncio.fixture(loop_scope="session")
async def signed(stack: Stack, namespace: str) -> str:
    """A namespace with one memory, signed under OLD."""
    async with serving(stack.redis.url_of(SERVER), master_key=OLD) as server, server.agent("ann", namespace) as ann:
        await ann.store("The lighthouse is red.", wait=False)
    return namespace


@pytest.mark.parametrize("key", [None, NEW], ids=["none", "new"])
async def test_command_without_the_key_is_refused_in_one_line(stack: Stack, signed: str, key: str | None) -> None:
    shell = Shell(stack.redis.url_of(SERVER), key=key)
    for command in (
        ("agents", "list"),
        ("search", "lighthouse", "--agent", "ann"),
        ("integrity", "verify"),
        ("tasks", "list"),
    ):
        refused = await shell.run(*command, "--namespace", signed)
        assert refused.code == 78, command
        assert refused.output.startswith(f"key_missing: the memories of namespace {signed} are signed under the key")
        assert "\n" not in refused.output


@pytest.mark.parametrize("key", [None, NEW], ids=["none", "new"])
async def test_server_without_the_key_stops(stack: Stack, signed: str, key: str | None) -> None:
    async with serving(stack.redis.url_of(SERVER), master_key=key, namespace=signed) as server:
        error = await asyncio.wait_for(asyncio.shield(server.service.backend.fatal), 20)
    assert isinstance(error, SignedElsewhere)


async def test_server_refuses_calls_in_a_namespace_of_another_key(stack: Stack, signed: str) -> None:
    before = await read_entries(stack.client, signed)
    async with serving(stack.redis.url_of(SERVER)) as keyless, keyless.agent("ann", signed) as ann:
        for tool, arguments in (
            ("semantic_search", {"query": "lighthouse"}),
            ("get_agent_memories", {}),
            ("register_agent", {"agent_id": "ann"}),
            ("store_memory", {"content": "Mine."}),
        ):
            assert (await refusal(ann, tool, **arguments))[0] == "key_missing", tool
        await keyless.service.auditor.flush()
    assert await read_entries(stack.client, signed) == before, "no unsigned entry is written"


async def test_running_server_stops_when_another_turns_a_key_on(stack: Stack, namespace: str) -> None:
    url = stack.redis.url_of(SERVER)
    async with serving(url, namespace=namespace) as keyless, keyless.agent("ann", namespace) as ann:
        await ann.store("Before.", wait=False)
        async with serving(url, master_key=NEW) as keyed, keyed.agent("bob", namespace) as bob:
            await bob.store("After.", wait=False)
        await asyncio.wait_for(asyncio.shield(keyless.service.backend.fatal), 20)
        assert (await refusal(ann, "semantic_search", query="after"))[0] == "key_missing"


async def test_new_key_with_the_old_one_is_accepted_and_becomes_the_signer(stack: Stack, signed: str) -> None:
    url = stack.redis.url_of(SERVER)
    async with serving(url, master_key=f"{NEW},{OLD}") as server, server.agent("ann", signed) as ann:
        await ann.store("A second one.", wait=False)
    assert (await Shell(url, key=NEW).run("agents", "list", "--namespace", signed)).code == 0
    assert (await Shell(url, key=OLD).run("agents", "list", "--namespace", signed)).code == 78


async def test_adopting_lets_go_of_the_old_key_also_if_no_memory_is_left(stack: Stack, signed: str) -> None:
    url = stack.redis.url_of(SERVER)
    async for key in stack.client.scan_iter(f"{Keys(signed).memory('')}*"):
        await stack.client.delete(key)
    adopted = await Shell(url, key=f"{NEW},{OLD}").run("integrity", "adopt", "--namespace", signed)
    assert adopted.code == 0
    assert (await Shell(url, key=NEW).run("agents", "list", "--namespace", signed)).code == 0


@pytest.mark.parametrize(("key", "is_accepted"), [(OLD, True), (NEW, False), (None, False)], ids=["old", "new", "none"])
async def test_namespace_of_an_earlier_release_is_judged_by_its_audit(
    stack: Stack, signed: str, key: str | None, is_accepted: bool
) -> None:
    await stack.client.hset(Keys(signed).counters, "signed", 1)
    keyring = load_keyring(Settings.load(master_key=key))
    if is_accepted:
        await check_signer(stack.client, keyring, signed)
        return
    with pytest.raises(SignedElsewhere):
        await check_signer(stack.client, keyring, signed)
