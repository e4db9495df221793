"""One agent of the example team, as a process of its own: `python team_agent.py NAME URL`.

It works through the tools of the memory server alone, and says what it does as lines of JSON, for team.py to show.
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
STEP_SECONDS = 0.6
WATCH_SECONDS = 0.3
PROJECT = "dates"


@dataclass(frozen=True, slots=True)
class Role:
    """What an agent says of itself when it registers."""

    capabilities: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True)
class Work:
    """A task of the plan; `learns` is what whoever does it finds out. `assign_to` holds only while that agent lives."""

    title: str
    capability: str
    steps: tuple[str, ...]
    after: tuple[str, ...] = ()
    priority: str = "medium"
    assign_to: str | None = None
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
        assign_to="coder",
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

    def tell(self, event: str, **about: Any) -> None:
        """Say what happened."""
        print(json.dumps({"agent": self.name, "event": event, **about}), flush=True)

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool and give its structured answer.

        Raises:
            RuntimeError: it refused.
        """
        result = await self._client.call_tool(tool, arguments)
        assert isinstance(result, CallToolResult)
        if result.is_error:
            raise RuntimeError(f"{tool} was refused: {result.structured_content}")
        return result.structured_content or {}

    async def register(self) -> None:
        """Say who this is and what it can do."""
        role = TEAM[self.name]
        await self.call(
            "register_agent",
            capabilities=list(role.capabilities),
            description=role.description,
            heartbeat_seconds=HEARTBEAT_SECONDS,
        )
        self.tell("registered", capabilities=role.capabilities)

    async def beat(self) -> None:
        """Say that this agent lives and what it has done of its task, and renew its lease."""
        tokens = [self._token] if self._token else []
        await self.call("update_agent_heartbeat", lease_tokens=tokens, metrics={"steps done": self._done})

    async def live(self) -> None:
        """Give signs of life for ever."""
        while True:
            await self.beat()
            await asyncio.sleep(HEARTBEAT_SECONDS / 2)

    async def remember(self, content: str, **how: str) -> None:
        """Store a memory of the project."""
        await self.call("store_memory", content=content, context=PROJECT, **how)
        self.tell("learned", memory=content)

    async def work(self) -> None:
        """Do whatever task comes, for ever."""
        while True:
            answer = await self.call("get_pending_tasks", wait_seconds=10, with_memories=3)
            for task in answer["tasks"]:
                await self._do(task)

    async def _do(self, task: dict[str, Any]) -> None:
        about, title, handoff = task["payload"], task["payload"]["title"], task.get("handoff")
        self._token, self._done = task["lease_token"], []
        known = [hit["memory"]["content"] for hit in task["memories"]]
        self.tell("claimed", task=title, attempt=task["attempt"], handoff=handoff, memories=known)
        for step in about["steps"]:
            done_before = bool(handoff and step in handoff)
            if not done_before:
                await asyncio.sleep(STEP_SECONDS)
            self._done.append(step)
            await self.beat()
            self.tell("skipped" if done_before else "step", task=title, step=step)
        if about["learns"]:
            await self.remember(about["learns"], visibility="public")
        await self.call("complete_task", task_id=task["task_id"], lease_token=self._token, result={"steps": self._done})
        self._token, self._done = None, []
        self.tell("completed", task=title)


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
            planner.tell("shared", context=PROJECT, to=name)


async def submit(planner: Member) -> dict[str, str]:
    """Submit the plan; give the task id of each title."""
    ids: dict[str, str] = {}
    for work in PLAN:
        answer = await planner.call(
            "distribute_task",
            description=work.title,
            task_type=work.capability,
            payload={"title": work.title, "steps": work.steps, "learns": work.learns},
            required_capabilities=[work.capability],
            priority=work.priority,
            assign_to=work.assign_to,
            depends_on=[ids[title] for title in work.after],
        )
        ids[work.title] = answer["task_id"]
        planner.tell("submitted", task=work.title, state=answer["state"], why=answer["why"]["reason"])
    return ids


async def watch(planner: Member, ids: dict[str, str]) -> None:
    """Wait until every task of the plan has ended, telling who is lost meanwhile; then say how each went."""
    lost: set[str] = set()
    while True:
        for agent in (await planner.call("list_agents", alive_only=False))["agents"]:
            if not agent["alive"] and agent["agent_id"] not in lost:
                lost.add(agent["agent_id"])
                planner.tell("lost", name=agent["agent_id"])
        answers = [await planner.call("get_task", task_id=task_id) for task_id in ids.values()]
        if all(answer["task"]["state"] in {"completed", "dead", "cancelled"} for answer in answers):
            break
        await asyncio.sleep(WATCH_SECONDS)
    planner.tell("finished", tasks=[answer["task"] for answer in answers])


async def plan(planner: Member) -> None:
    """Do what only the planner does."""
    await wait_for_team(planner)
    await share_what_is_known(planner)
    await watch(planner, await submit(planner))


async def main(name: str, url: str) -> None:
    """Be an agent until stopped."""
    async with Client(url) as client:
        member = Member(name, client)
        await member.register()
        async with asyncio.TaskGroup() as group:
            group.create_task(member.live())
            group.create_task(member.work())
            if name == "planner":
                group.create_task(plan(member))


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1], sys.argv[2]))
    except* RuntimeError as group:
        sys.exit(f"{sys.argv[1]}: {group.exceptions[0]}")
