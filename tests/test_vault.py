"""A server lets go of data keys that were destroyed elsewhere, and without a key says nothing of what is sensitive."""

from __future__ import annotations

import pytest
from embedder_fixtures import wait_until
from leaks import Monitor
from redis_users import SERVER
from sharing_helpers import refusal
from stack import MASTER_KEY, Stack, serving

from memory_core.keys import Keys
from memory_server import vault


@pytest.mark.parametrize(
    ("short", "long"), [("_LOOK_SECONDS", "REMEMBER_SECONDS"), ("REMEMBER_SECONDS", "_LOOK_SECONDS")]
)
async def test_a_data_key_that_was_destroyed_elsewhere_opens_nothing_soon_after(
    short: str, long: str, stack: Stack, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault, short, 0.05)
    monkeypatch.setattr(vault, long, 3600.0)
    keys = Keys(namespace)
    async with (
        serving(stack.redis.url_of(SERVER), master_key=MASTER_KEY) as server,
        server.agent("ann", namespace) as ann,
    ):
        memory_id = await ann.store("The vault stands open.", sensitive=True, wait=False)
        assert (await ann.call("retrieve_memory", memory_id=memory_id))["memory"]["content"] == "The vault stands open."
        owner = (await stack.client.hget(keys.agent("ann"), "owner")).decode()
        await stack.client.delete(keys.data_key(owner))

        async def is_closed() -> bool:
            return (await ann.raw("retrieve_memory", memory_id=memory_id)).is_error

        await wait_until(is_closed)
        assert (await refusal(ann, "retrieve_memory", memory_id=memory_id))[0] == "tampered"


async def test_without_a_master_key_nothing_of_a_sensitive_memory_goes_anywhere(stack: Stack, namespace: str) -> None:
    async with (
        serving(stack.redis.url_of(SERVER)) as server,
        server.agent("ann", namespace) as ann,
        Monitor(stack.redis.path) as monitor,
    ):
        refused = await refusal(ann, "store_memory", content="The canary of the cellar sings.", sensitive=True)
        assert refused[0] == "key_missing"
        await monitor.until(namespace.encode() + b" is silent", stack.client)
        assert b"canary" not in monitor.heard
