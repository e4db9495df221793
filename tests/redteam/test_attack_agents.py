"""Attacks by agents on consent, private texts and the size of answers, with valid credentials."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError
from support.sharing_helpers import LABELS, SECRET, refusal, share
from support.stack import MASTER_KEY, Agent, Server, Stack, answer_of, serving
from support.team_helpers import claim, register, submit

from memory_core.records.keys import NAMESPACES

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


