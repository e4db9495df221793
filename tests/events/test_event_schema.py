"""Every event in the stream matches the published schema."""

from __future__ import annotations

import json

import jsonschema
import pytest
from support.stack import Agent, Stack

from memory_core.package_data import resource
from memory_core.records.keys import Keys


async def test_every_event_matches_its_schema(alice: Agent, bob: Agent, stack: Stack, namespace: str) -> None:
    await alice.call("register_agent", capabilities=["tea"])
    await bob.call("register_agent")
    memory = await alice.store("Tea is ready at four.")
    await alice.call("update_memory", memory_id=memory, content="Tea is ready at five.")
    grant = await alice.call("share_context_with_agent", target_agent="bob", tags=["tea"], bidirectional=True)
    await bob.call("share_context_with_agent", target_agent="alice", tags=["tea"])
    await bob.call("revoke_shared_context", grant_id=grant["grant_id"])
    grant = await alice.call("share_context_with_agent", target_agent="bob", tags=["tea"])
    await alice.call("revoke_shared_context", grant_id=grant["grant_id"])
    task = await bob.call("distribute_task", description="Make tea.", required_capabilities=["tea"])
    held = (await alice.call("get_pending_tasks"))["tasks"][0]
    await alice.call("fail_task", task_id=task["task_id"], lease_token=held["lease_token"], error="no water")
    await bob.call("cancel_task", task_id=task["task_id"])
    await alice.call("clear_memory", memory_ids=[memory])
    await bob.call("unregister_agent")
    rules = json.loads(resource("schemas/event.json").read_text())
    seen: set[str] = set()
    for _, fields in await stack.client.xrange(Keys(namespace).events):
        event = {name.decode(): value.decode() for name, value in fields.items()}
        jsonschema.validate(event, rules)
        seen.add(f"{event['kind']} {event['op']}")
        for name in event:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({key: value for key, value in event.items() if key != name}, rules)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(event | {"op": "invented"}, rules)
    assert seen >= {
        *("memory stored", "memory updated", "memory deleted", "agent registered", "agent unregistered"),
        *("grant granted", "grant offered", "grant accepted", "grant revoked", "grant declined"),
        *("task submitted", "task assigned", "task leased", "task retrying", "task cancelled"),
    }
