"""What every client of somebody else must be able to do with this server: one tour for all, of two agents."""

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
TEMPLATES = {"memory://{memory_id}", "task://{task_id}", "agent://{agent_id}"}
PROMPTS = {"recall_before_you_start", "save_what_you_learned"}
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "an unknown argument": ("store_memory", {"content": "x", "colour": "red"}),
    "a missing argument": ("store_memory", {}),
    "a value out of range": ("semantic_search", {"query": "x", "limit": 100_000}),
    "a value of the wrong type": ("retrieve_memory", {"memory_id": {"a": 1}}),
}


class Broken(Exception):
    """The tour found something that is not as it must be."""


def expect(holds: object, what: str, seen: object) -> None:
    """Raise unless it holds.

    Raises:
        Broken: it does not; says what was expected and what was seen.
    """
    if not holds:
        raise Broken(f"{what}; seen: {json.dumps(seen, default=str)[:600]}")


@dataclass(slots=True)
class Traveller:
    """An agent behind a client; all that tools answer is held against their output schemas."""

    name: str
    peer: Peer
    validators: dict[str, Draft202012Validator] = field(default_factory=dict[str, Draft202012Validator])
    calls: int = 0

    async def look(self) -> None:
        """List the tools and check their schemas strictly."""
        tools: list[dict[str, Any]] = await self.peer.ask("tools")
        expect(len(tools) >= 23, "all tools are listed", [tool["name"] for tool in tools])
        problems = [problem for tool in tools for problem in problems_of(tool)]
        expect(not problems, "the schemas of all tools pass the strict check", problems)
        self.validators = {tool["name"]: Draft202012Validator(tool["outputSchema"]) for tool in tools}

    async def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool that must answer."""
        said = await self._ask(tool, arguments)
        expect(not said["error"], f"{self.name}'s {tool} is answered", said["text"])
        expect(said["text"], f"{tool} has a text form", said)
        return said["answer"]

    async def refused(self, code: str, tool: str, /, **arguments: Any) -> None:
        """Call a tool that must refuse with this code."""
        said = await self._ask(tool, arguments)
        expect(said["error"], f"{self.name}'s {tool} is refused", said)
        error = said["answer"]["error"]
        expect(error["code"] == code and error["message"], f"{tool} is refused as {code}", error)
        expect(said["text"].startswith(f"{code}: "), "the text says so too", said["text"])

    async def _ask(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        said = await self.peer.ask("call", tool=tool, arguments=arguments)
        wrong = [error.message for error in self.validators[tool].iter_errors(said["answer"])]
        expect(not wrong, f"what {tool} answers is as its output schema says", [wrong, said["answer"]])
        return said


async def whole_tour(planner: Traveller, coder: Traveller) -> None:
    """Go everywhere."""
    await planner.look()
    coder.validators = planner.validators
    memory_id = await _remember(planner, coder)
    await _be_refused(planner, coder, memory_id)
    await _hand_over(planner, coder)
    await _read(coder, memory_id, LATER)
    await _be_prompted(coder)


async def short_tour(traveller: Traveller) -> None:
    """Go once to each kind of thing, where each call costs a start of the client or even of the server."""
    await traveller.look()
    stored = await traveller.call("store_memory", content=FACT)
    tool, arguments = WRONG["an unknown argument"]
    await traveller.refused("invalid_argument", tool, **arguments)
    memory = json.loads(await traveller.peer.ask("read", uri=f"memory://{stored['memory_id']}"))
    expect(memory["content"] == FACT, "a memory is read as a resource", memory)
    await _be_prompted(traveller)


async def _remember(planner: Traveller, coder: Traveller) -> str:
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


async def _be_refused(planner: Traveller, coder: Traveller, memory_id: str) -> None:
    for tool, arguments in WRONG.values():
        await planner.refused("invalid_argument", tool, **arguments)
    await planner.refused("conflict", "update_memory", memory_id=memory_id, content="stale", expected_rev=1)
    await coder.refused("forbidden", "update_memory", memory_id=memory_id, content="not mine")
    await coder.refused("not_found", "retrieve_memory", memory_id=memory_id[:-4] + "zzzz")


async def _hand_over(planner: Traveller, coder: Traveller) -> None:
    await coder.call("register_agent", agent_type="custom", capabilities=["tickets"])
    given = await planner.call("distribute_task", description="Book two berths.", required_capabilities=["tickets"])
    claimed = (await coder.call("get_pending_tasks", limit=1))["tasks"]
    expect([task["task_id"] for task in claimed] == [given["task_id"]], "the able agent gets the task", claimed)
    held = {"task_id": given["task_id"], "lease_token": claimed[0]["lease_token"]}
    await coder.refused("lease_lost", "complete_task", **held | {"lease_token": "not-mine"})
    await coder.call("complete_task", **held, result={"berths": [11, 12]})
    seen = (await planner.call("get_task", task_id=given["task_id"]))["task"]
    expect(seen["state"] == "completed" and seen["result"] == {"berths": [11, 12]}, "its result is there", seen)


async def _read(traveller: Traveller, memory_id: str, content: str) -> None:
    templates = set(await traveller.peer.ask("templates"))
    expect(templates == TEMPLATES, "the templates of resources are listed", sorted(templates))
    memory = json.loads(await traveller.peer.ask("read", uri=f"memory://{memory_id}"))
    expect(memory["content"] == content, "a memory is read as a resource", memory)
    try:
        unknown = await traveller.peer.ask("read", uri=f"memory://{memory_id[:-4]}zzzz")
    except PeerFailed as error:
        expect("no memory" in str(error), "an unknown resource is refused with the reason", str(error))
    else:
        raise Broken(f"an unknown resource is refused; seen: {unknown}")


async def _be_prompted(traveller: Traveller) -> None:
    prompts = set(await traveller.peer.ask("prompts"))
    expect(prompts == PROMPTS, "the prompts are listed", sorted(prompts))
    text = await traveller.peer.ask("prompt", name="recall_before_you_start", arguments={"task": "book berths"})
    expect("Task: book berths" in text, "a prompt comes with its argument", text)
