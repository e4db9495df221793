"""What every third-party client must be able to do with this server: one scenario for all, with two agents."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from jsonschema import Draft202012Validator
from peers import Peer, PeerFailed
from support.tool_schemas import problems_of

FACT = "The night train to Trieste leaves from platform nine."
LATER = "The night train to Trieste leaves from platform four."
QUESTION = "where do I board the sleeper to Italy?"
TEMPLATES = {"memory://{memory_id}{?rev,chunk,max_tokens,cursor}", "task://{task_id}", "agent://{agent_id}"}
PROMPTS = {"recall_before_you_start", "save_what_you_learned"}
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "an unknown argument": ("store_memory", {"content": "x", "colour": "red"}),
    "a missing argument": ("store_memory", {}),
    "a value out of range": ("semantic_search", {"query": "x", "limit": 100_000}),
    "a value of the wrong type": ("retrieve_memory", {"memory_id": {"a": 1}}),
}


class ScenarioFailed(Exception):
    """A step of the scenario did not have the expected result."""


def expect(holds: object, what: str, seen: object) -> None:
    """Raise unless the condition holds.

    Raises:
        ScenarioFailed: with the expectation and the value seen.
    """
    if not holds:
        raise ScenarioFailed(f"{what}; seen: {json.dumps(seen, default=str)[:600]}")


@dataclass(slots=True)
class AgentClient:
    """An agent behind a client. Validates every answer against its tool's output schema."""

    name: str
    peer: Peer
    validators: dict[str, Draft202012Validator] = field(default_factory=dict[str, Draft202012Validator])
    calls: int = 0

    async def check_tools(self) -> None:
        """List the tools and check their schemas strictly."""
        tools: list[dict[str, Any]] = await self.peer.ask("tools")
        expect(len(tools) >= 23, "all tools are listed", [tool["name"] for tool in tools])
        problems = [problem for tool in tools for problem in problems_of(tool)]
        expect(not problems, "the schemas of all tools pass the strict check", problems)
        self.validators = {tool["name"]: Draft202012Validator(tool["outputSchema"]) for tool in tools}

    async def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool that must answer."""
        result = await self._ask(tool, arguments)
        expect(not result["error"], f"{self.name}'s {tool} is answered", result["text"])
        expect(result["text"], f"{tool} has a text form", result)
        return result["answer"]

    async def refused(self, code: str, tool: str, /, **arguments: Any) -> None:
        """Call a tool that must refuse with this code."""
        result = await self._ask(tool, arguments)
        expect(result["error"], f"{self.name}'s {tool} is refused", result)
        error = result["answer"]["error"]
        expect(error["code"] == code and error["message"], f"{tool} is refused as {code}", error)
        expect(result["text"].startswith(f"{code}: "), "the text starts with the code", result["text"])

    async def _ask(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        result = await self.peer.ask("call", tool=tool, arguments=arguments)
        wrong = [error.message for error in self.validators[tool].iter_errors(result["answer"])]
        expect(not wrong, f"the answer of {tool} matches its output schema", [wrong, result["answer"]])
        return result


async def full_scenario(planner: AgentClient, coder: AgentClient) -> None:
    """Every step."""
    await planner.check_tools()
    coder.validators = planner.validators
    memory_id = await _remember(planner, coder)
    await _check_refusals(planner, coder, memory_id)
    await _hand_over(planner, coder)
    await _check_resources(coder, memory_id, LATER)
    await _check_prompts(coder)


async def short_scenario(agent: AgentClient) -> None:
    """One step of each kind, for clients that start again for each call."""
    await agent.check_tools()
    stored = await agent.call("store_memory", content=FACT)
    tool, arguments = WRONG["an unknown argument"]
    await agent.refused("invalid_argument", tool, **arguments)
    memory = json.loads(await agent.peer.ask("read", uri=f"memory://{stored['memory_id']}"))
    expect(memory["content"] == FACT, "a memory is read as a resource", memory)
    await _check_prompts(agent)


async def _remember(planner: AgentClient, coder: AgentClient) -> str:
    stored = await planner.call("store_memory", content=FACT, visibility="public", tags=["trains"])
    memory_id: str = stored["memory_id"]
    expect(stored["vector"] == "ready", "a waited store has its vector", stored)
    found = await coder.call("semantic_search", query=QUESTION, mode="vector", limit=3)
    hits = [hit["memory"]["memory_id"] for hit in found["hits"]]
    expect(hits[:1] == [memory_id] and not found["partial"], "another agent finds it by meaning", found)
    changed = await planner.call("update_memory", memory_id=memory_id, content=LATER, expected_rev=1)
    expect(changed["memory"]["rev"] == 2, "an update is a new revision", changed)
    read = await coder.call("retrieve_memory", memory_id=memory_id)
    expect(read["memory"]["content"] == LATER, "the other agent reads the update", read)
    return memory_id


async def _check_refusals(planner: AgentClient, coder: AgentClient, memory_id: str) -> None:
    for tool, arguments in WRONG.values():
        await planner.refused("invalid_argument", tool, **arguments)
    await planner.refused("conflict", "update_memory", memory_id=memory_id, content="stale", expected_rev=1)
    await coder.refused("forbidden", "update_memory", memory_id=memory_id, content="not mine")
    await coder.refused("not_found", "retrieve_memory", memory_id=memory_id[:-4] + "zzzz")


async def _hand_over(planner: AgentClient, coder: AgentClient) -> None:
    await coder.call("register_agent", agent_type="custom", capabilities=["tickets"])
    given = await planner.call("distribute_task", description="Book two berths.", required_capabilities=["tickets"])
    claimed = (await coder.call("get_pending_tasks", limit=1))["tasks"]
    expect([task["task_id"] for task in claimed] == [given["task_id"]], "the able agent gets the task", claimed)
    held = {"task_id": given["task_id"], "lease_token": claimed[0]["lease_token"]}
    await coder.refused("lease_lost", "complete_task", **held | {"lease_token": "not-mine"})
    await coder.call("complete_task", **held, result={"berths": [11, 12]})
    seen = (await planner.call("get_task", task_id=given["task_id"]))["task"]
    expect(seen["state"] == "completed" and seen["result"] == {"berths": [11, 12]}, "its result is there", seen)


async def _check_resources(agent: AgentClient, memory_id: str, content: str) -> None:
    templates = set(await agent.peer.ask("templates"))
    expect(templates == TEMPLATES, "the templates of resources are listed", sorted(templates))
    memory = json.loads(await agent.peer.ask("read", uri=f"memory://{memory_id}"))
    expect(memory["content"] == content, "a memory is read as a resource", memory)
    try:
        unknown = await agent.peer.ask("read", uri=f"memory://{memory_id[:-4]}zzzz")
    except PeerFailed as error:
        expect("no memory" in str(error), "an unknown resource is refused with the reason", str(error))
    else:
        raise ScenarioFailed(f"an unknown resource is refused; seen: {unknown}")


async def _check_prompts(agent: AgentClient) -> None:
    prompts = set(await agent.peer.ask("prompts"))
    expect(prompts == PROMPTS, "the prompts are listed", sorted(prompts))
    text = await agent.peer.ask("prompt", name="recall_before_you_start", arguments={"task": "book berths"})
    expect("\n> book berths" in text, "a prompt comes with its argument", text)
