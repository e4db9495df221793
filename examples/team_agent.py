"""One agent of the example team, in its own process: `python team_agent.py NAME URL`.

It uses only the tools of the memory server, and prints its events as lines of JSON for team.py.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any

from mcp import Client
from mcp_types import CallToolResult

HEARTBEAT_SECONDS = 0.5
LEASE_SECONDS = 2.0
STEP_SECONDS = 0.6
WATCH_SECONDS = 0.3
PROJECT = "dates"


@dataclass(frozen=True, slots=True)
class Role:
    """What an agent registers with."""

    capabilities: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True)
class Work:
    """A task of the plan. `learns` is what its agent finds out."""

    title: str
    capability: str
    steps: tuple[str, ...]
    after: tuple[str, ...] = ()
    priority: str = "medium"
    learns: str | None = None


TEAM = {
    "planner": Role(("plan",), "plans the work of the team and releases what is done"),
    "coder": Role(("code",), "writes Python code"),
    "reviewer": Role(("code", "review"), "reads code of others and finds what is wrong with it"),
    "tester": Role(("test",), "writes and runs tests"),
}
KNOWN = (
    "Dates are written in ISO 8601; the parser refuses two-digit years.",
    "The command line prints one date a line and exits with 2 on a mistake.",
)
PLAN = (
    Work(  # keeps the reviewer busy, so that the coder gets the next two
        "Review the specification",
        "review",
        ("read it", "look for dates that it forgets", "look for words that can be misread", "write down questions"),
        priority="critical",
    ),
    Work(
        "Write the date parser",
        "code",
        ("read the specification", "write parse()"),
        priority="high",
        learns="The date parser uses datetime.fromisoformat: it is exact and ten times as fast as strptime.",
    ),
    Work(
        "Write the command line that prints dates",
        "code",
        ("read the arguments", "print the dates", "explain mistakes"),
        after=("Write the date parser",),
        priority="high",
        learns="The command line reads standard input when it is given no dates.",
    ),
    Work(
        "Review the date parser",
        "review",
        ("read parse()", "write down what is wrong"),
        after=("Write the date parser",),
        learns="Review of the date parser: sound, but 29 February deserves a test.",
    ),
    Work(
        "Test the date parser",
        "test",
        ("write the tests", "run them"),
        after=("Review the date parser",),
    ),
    Work(
        "Test the command line that prints dates",
        "test",
        ("write the tests", "run them"),
        after=("Write the command line that prints dates",),
    ),
    Work(
        "Release the date tool",
        "plan",
        ("write the notes", "tag the release"),
        after=("Test the date parser", "Test the command line that prints dates"),
        priority="critical",
    ),
)


class Member:
    """A member of the team, connected over MCP."""

    def __init__(self, name: str, client: Client) -> None:
        self.name = name
        self._client = client
        self._token: str | None = None
        self._done: list[str] = []

    def report(self, event: str, **about: Any) -> None:
        """Print an event."""
        print(json.dumps({"agent": self.name, "event": event, **about}), flush=True)

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool; return its structured answer.

        Raises:
            RuntimeError: the tool refused.
        """
        result = await self._client.call_tool(tool, arguments)
        assert isinstance(result, CallToolResult)
        if result.is_error:
            raise RuntimeError(f"{tool} was refused: {result.structured_content}")
        return result.structured_content or {}

    async def register(self) -> None:
        """Register this agent with its capabilities."""
        role = TEAM[self.name]
        await self.call(
            "register_agent",
            capabilities=list(role.capabilities),
            description=role.description,
            heartbeat_seconds=HEARTBEAT_SECONDS,
        )
        self.report("registered", capabilities=role.capabilities)

    async def send_heartbeat(self) -> None:
        """Send a heartbeat that renews the lease and lists the steps done."""
        tokens = [self._token] if self._token else []
        await self.call("update_agent_heartbeat", lease_tokens=tokens, metrics={"steps done": self._done})

    async def send_heartbeats(self) -> None:
        """Send heartbeats forever."""
        while True:
            await self.send_heartbeat()
            await asyncio.sleep(HEARTBEAT_SECONDS / 2)

    async def remember(self, content: str, **how: str) -> None:
        """Store a memory of the project."""
        await self.call("store_memory", content=content, context=PROJECT, **how)
        self.report("learned", memory=content)

    async def work(self) -> None:
        """Do tasks forever."""
        while True:
            answer = await self.call("get_pending_tasks", wait_seconds=10, with_memories=3)
            for task in answer["tasks"]:
                await self._do(task)

    async def _do(self, task: dict[str, Any]) -> None:
        about, title = task["payload"], task["payload"]["title"]
        done = (task.get("progress") or {}).get("steps done", [])
        self._token, self._done = task["lease_token"], []
        known = [hit["memory"]["content"] for hit in task["memories"]]
        self.report("claimed", task=title, attempt=task["attempt"], done=done, memories=known)
        for step in about["steps"]:
            done_before = step in done
            if not done_before:
                await asyncio.sleep(STEP_SECONDS)
            self._done.append(step)
            await self.send_heartbeat()
            self.report("skipped" if done_before else "step", task=title, step=step)
        if about["learns"]:
            await self.remember(about["learns"], visibility="public")
        await self.call("complete_task", task_id=task["task_id"], lease_token=self._token, result={"steps": self._done})
        self._token, self._done = None, []
        self.report("completed", task=title)


async def wait_for_team(planner: Member) -> None:
    """Wait until every other member has registered."""
    while True:
        alive = {agent["agent_id"] for agent in (await planner.call("list_agents"))["agents"]}
        if alive >= set(TEAM):
            return
        await asyncio.sleep(WATCH_SECONDS)


async def share_what_is_known(planner: Member) -> None:
    """Store what the team must know, and let every member read it."""
    for fact in KNOWN:
        await planner.remember(fact)
    for name in TEAM:
        if name != planner.name:
            await planner.call("share_context_with_agent", target_agent=name, context=PROJECT)
            planner.report("shared", context=PROJECT, to=name)


async def submit(planner: Member) -> dict[str, str]:
    """Submit the plan; return the task id of each title."""
    ids: dict[str, str] = {}
    for work in PLAN:
        answer = await planner.call(
            "distribute_task",
            description=work.title,
            task_type=work.capability,
            payload={"title": work.title, "steps": work.steps, "learns": work.learns},
            required_capabilities=[work.capability],
            priority=work.priority,
            depends_on=[ids[title] for title in work.after],
            lease_seconds=LEASE_SECONDS,
        )
        ids[work.title] = answer["task_id"]
        planner.report("submitted", task=work.title, state=answer["state"], why=answer["why"]["reason"])
    return ids


async def watch(planner: Member, ids: dict[str, str]) -> None:
    """Wait until every task of the plan has ended, report lost agents meanwhile, then report the results."""
    lost: set[str] = set()
    while True:
        for agent in (await planner.call("list_agents", alive_only=False))["agents"]:
            if not agent["alive"] and agent["agent_id"] not in lost:
                lost.add(agent["agent_id"])
                planner.report("lost", name=agent["agent_id"])
        answers = [await planner.call("get_task", task_id=task_id) for task_id in ids.values()]
        if all(answer["task"]["state"] in {"completed", "dead", "cancelled"} for answer in answers):
            break
        await asyncio.sleep(WATCH_SECONDS)
    planner.report("finished", tasks=[answer["task"] for answer in answers])


async def plan(planner: Member) -> None:
    """What only the planner does."""
    await wait_for_team(planner)
    await share_what_is_known(planner)
    await watch(planner, await submit(planner))


async def main(name: str, url: str) -> None:
    """Run an agent until stopped."""
    async with Client(url) as client:
        member = Member(name, client)
        await member.register()
        async with asyncio.TaskGroup() as group:
            group.create_task(member.send_heartbeats())
            group.create_task(member.work())
            if name == "planner":
                group.create_task(plan(member))


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1], sys.argv[2]))
    except* RuntimeError as group:
        sys.exit(f"{sys.argv[1]}: {group.exceptions[0]}")
