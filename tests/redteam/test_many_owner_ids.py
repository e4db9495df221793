"""An agent collects owner ids and contexts, so that one call of it holds up Redis for everybody."""

from __future__ import annotations

import pytest
from support.sharing_helpers import refusal, register
from support.stack import Server, Stack

from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.names import SEPARATOR

pytestmark = pytest.mark.redteam


async def spent_ms(stack: Stack) -> float:
    """The time in Functions since the statistics were reset."""
    return (await stack.client.info("commandstats"))["cmdstat_fcall"]["usec"] / 1000


async def test_share_by_a_holder_of_many_owner_ids_is_cheap(server: Server, stack: Stack, namespace: str) -> None:
    async with server.agent("mallory", namespace) as mallory, server.agent("bob", namespace) as bob:
        await register(mallory, "mallory")
        await register(bob, "bob")
        key = Keys(namespace).agent("mallory")
        owner = (await stack.client.hget(key, "owners")).decode()
        await stack.client.hset(key, "owners", SEPARATOR.join([*(new_id() for _ in range(8000)), owner]))
        await stack.client.config_resetstat()
        tags = [f"tag {number}" for number in range(20)]
        code, _ = await refusal(mallory, "share_context_with_agent", target_agent="bob", tags=tags)
    assert code == "conflict"
    assert await spent_ms(stack) < 25


async def test_owner_ids_of_one_agent_are_bounded(server: Server, stack: Stack, namespace: str) -> None:
    keys = Keys(namespace)
    async with server.agent("mallory", namespace) as mallory, server.agent("bob", namespace) as bob:
        await register(mallory, "mallory")
        await register(bob, "bob")
        await bob.store("The bakery opens at six.")
        owners = (await stack.client.hget(keys.agent("mallory"), "owners")).decode()
        many = SEPARATOR.join([*(new_id() for _ in range(999)), owners])
        await stack.client.hset(keys.agent("mallory"), "owners", many)
        offer = (await bob.call("unregister_agent", memories="transfer", transfer_to="mallory"))["offer_id"]
        code, text = await refusal(mallory, "answer_offer", offer_id=offer)
        assert (code, "1000" in text) == ("conflict", True)
        await stack.client.hset(keys.agent("mallory"), "owners", owners)
        assert (await mallory.call("answer_offer", offer_id=offer))["memories_received"] == 1


async def test_agent_with_many_contexts_leaves_cheaply(server: Server, stack: Stack, namespace: str) -> None:
    keys = Keys(namespace)
    async with server.agent("mallory", namespace) as mallory:
        await register(mallory, "mallory")
        await mallory.store("The bakery opens at six.")
        owner = (await stack.client.hget(keys.agent("mallory"), "owners")).decode()
        for _ in range(100):
            await stack.client.hset(keys.seq(owner), mapping={new_id(): 1 for _ in range(1000)})
        await stack.client.config_resetstat()
        await mallory.call("unregister_agent")
    assert await spent_ms(stack) < 15
