"""A second registration keeps what it leaves out, and says what it changed."""

from __future__ import annotations

from typing import Any

from support.stack import Agent, answer_of, text_of

PROFILE: dict[str, Any] = {
    "agent_type": "claude",
    "capabilities": ["python", "review"],
    "context_window": 200_000,
    "max_tasks": 4,
    "heartbeat_seconds": 120,
    "description": "reads and writes Python",
}


async def register(agent: Agent, **profile: Any) -> tuple[dict[str, Any], str]:
    """Register an agent; return the structured answer and its text."""
    answer = await agent.client.call_tool("register_agent", profile)
    assert not answer.is_error, answer.content
    return answer_of(answer), text_of(answer)


def kept(answer: dict[str, Any]) -> dict[str, Any]:
    """The fields of an answer that a registration sets."""
    return {**answer["agent"], "heartbeat_seconds": answer["heartbeat_seconds"]}


async def test_second_registration_keeps_omitted_fields(alice: Agent) -> None:
    await register(alice, **PROFILE)
    answer, text = await register(alice)
    assert answer["again"]
    assert kept(answer) == kept(answer) | PROFILE
    assert answer["changed"] == {}
    assert "nothing changed" in text


async def test_second_registration_says_what_it_changed(alice: Agent) -> None:
    await register(alice, **PROFILE)
    answer, text = await register(alice, max_tasks=2, capabilities=["sql"], description=PROFILE["description"])
    assert kept(answer) == kept(answer) | {**PROFILE, "max_tasks": 2, "capabilities": ["sql"]}
    assert answer["changed"] == {
        "max_tasks": {"old": 4, "new": 2},
        "capabilities": {"old": ["python", "review"], "new": ["sql"]},
    }
    assert "max_tasks 4 → 2" in text
    assert 'capabilities ["python", "review"] → ["sql"]' in text


async def test_empty_list_clears_capabilities_and_empty_text_clears_nothing(alice: Agent) -> None:
    await register(alice, **PROFILE)
    answer, _ = await register(alice, capabilities=[], description="")
    assert (answer["agent"]["capabilities"], answer["agent"]["description"]) == ([], PROFILE["description"])
    assert answer["agent"]["agent_type"] == "claude"


async def test_defaults_apply_to_the_first_registration_only(alice: Agent) -> None:
    answer, text = await register(alice)
    assert (answer["again"], answer["changed"]) == (False, {})
    defaults = {"agent_type": "custom", "capabilities": [], "context_window": 0, "max_tasks": 1, "description": ""}
    assert kept(answer) == kept(answer) | defaults
    await register(alice, **PROFILE)
    await alice.call("unregister_agent")
    answer, _ = await register(alice)
    assert (answer["again"], kept(answer)) == (False, kept(answer) | defaults)
    assert "get_pending_tasks" in text


async def test_registering_again_in_a_batch_keeps_omitted_fields(alice: Agent) -> None:
    await register(alice, **PROFILE)
    batch = await alice.call("batch_operations", operations=[{"op": "register_agent", "max_tasks": 5}])
    assert kept(batch["results"][0]["result"]) == kept(batch["results"][0]["result"]) | {**PROFILE, "max_tasks": 5}


async def test_registering_again_ends_draining_and_says_so(alice: Agent) -> None:
    await register(alice, **PROFILE)
    await alice.call("update_agent_heartbeat", status="draining")
    answer, _ = await register(alice)
    assert answer["changed"] == {"status": {"old": "draining", "new": "active"}}


async def test_registering_again_is_announced_only_if_something_changed(alice: Agent, bob: Agent) -> None:
    await register(bob)
    await register(alice, **PROFILE)
    told = (await bob.call("wait_for_events", kinds=["agent"], timeout_seconds=0))["events"]
    assert [(event["op"], event["id"]) for event in told] == [("registered", "alice")]
    for profile in ({}, PROFILE, {"max_tasks": 4}):
        await register(alice, **profile)
        assert (await bob.call("wait_for_events", kinds=["agent"], timeout_seconds=0))["events"] == [], profile
    for profile in ({"max_tasks": 5}, {"capabilities": ["sql"]}):
        await register(alice, **profile)
        told = (await bob.call("wait_for_events", kinds=["agent"], timeout_seconds=0))["events"]
        assert [(event["op"], event["id"]) for event in told] == [("registered", "alice")], profile
