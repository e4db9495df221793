"""A team of four agents in four processes builds a small tool. One agent is killed at work, and nothing is lost.

`python examples/team.py [--url http://127.0.0.1:8765/mcp]`: without a URL it starts its own server with temporary data.
It exits with 0 only if every task was completed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from mcp import Client
from rich.console import Console
from rich.table import Table
from rich.text import Text
from team_agent import TEAM

VICTIM = "coder"
VICTIMS_TASK = "Write the command line that prints dates"
MOST_SECONDS = 90
COLOURS = {"planner": "cyan", "coder": "green", "reviewer": "magenta", "tester": "yellow", "team": "bold red"}

Event = dict[str, Any]


@contextmanager
def own_server() -> Generator[str]:
    """Serve on a free port with temporary data; yields the URL once it is ready."""
    server_command = [sys.executable, "-m", "memory_server"]
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    with tempfile.TemporaryDirectory(prefix="redis-memory-team-") as folder:
        server = subprocess.Popen(
            [*server_command, "serve", "--port", "0", "--data-dir", folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        try:
            yield _url_of(server)
        finally:
            server.terminate()
            server.wait(20)
            subprocess.run([*server_command, "stop", "--data-dir", folder], check=True, capture_output=True)


def _url_of(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    url = ""
    for line in server.stdout:
        if match := re.search(r"serves MCP at (\S+)", line):
            url = match.group(1)
        if line.startswith("Ready"):
            return url
    raise RuntimeError("the server ended before it was ready")


class Timeline:
    """Prints the agents' events, one line each."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()

    def show(self, event: Event) -> None:
        """Show one event."""
        for line in _lines(event):
            self.say(event["agent"], line)

    def say(self, who: str, what: str) -> None:
        """Print what an agent did."""
        seconds = time.monotonic() - self._started
        line = Text.assemble((f"{seconds:6.2f}s  ", "dim"), (f"{who:<9}", COLOURS[who]), what)
        self._console.print(line, soft_wrap=True)


def _lines(event: Event) -> list[str]:
    """The text of an event."""
    match event:
        case {"event": "registered", "capabilities": capabilities}:
            return [f"registered; can {', '.join(capabilities)}"]
        case {"event": "learned", "memory": memory}:
            return [f"remembers “{memory}”"]
        case {"event": "shared", "context": context, "to": to}:
            return [f"shares its memories of “{context}” with {to}"]
        case {"event": "submitted", "task": task, "why": why}:
            return [f"submitted “{task}”: {why}"]
        case {"event": "claimed", "task": task}:
            done = [f"    steps done before: {', '.join(event['done'])}"] if event["done"] else []
            recalled = [f"    recalls “{memory}”" for memory in event["memories"]]
            return [f"took “{task}”, attempt {event['attempt']}", *done, *recalled]
        case {"event": "skipped", "step": step}:
            return [f"    need not {step}: it was done before"]
        case {"event": "step", "step": step}:
            return [f"    did: {step}"]
        case {"event": "completed", "task": task}:
            return [f"completed “{task}”"]
        case {"event": "lost", "name": name}:
            return [f"sees that {name} is dead"]
        case _:
            return []


class Team:
    """The processes of the agents, and their events so far."""

    def __init__(self, url: str, namespace: str, timeline: Timeline) -> None:
        self._url = f"{url}?namespace={namespace}"
        self._timeline = timeline
        self._processes: dict[str, Process] = {}
        self._finished: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        self._readers: list[asyncio.Task[None]] = []
        self._killed: str | None = None
        self.heir: str | None = None
        """The agent that took over the task of the killed one."""

    async def start(self) -> None:
        """Start every agent."""
        program = str(Path(__file__).with_name("team_agent.py"))
        for name in TEAM:
            process = await asyncio.create_subprocess_exec(
                sys.executable, program, name, f"{self._url}&agent={name}", stdout=PIPE
            )
            self._processes[name] = process
            self._readers.append(asyncio.create_task(self._read(name, process)))

    async def finished(self) -> list[dict[str, Any]]:
        """Wait until the planner reports that every task has ended; return the tasks.

        Raises:
            RuntimeError: an agent ended without being killed.
            TimeoutError: the tasks take too long.
        """
        async with asyncio.timeout(MOST_SECONDS):
            return await asyncio.shield(self._finished)

    async def stop(self) -> None:
        """Stop every agent."""
        for process in self._processes.values():
            if process.returncode is None:
                process.terminate()
        await asyncio.gather(*self._readers)

    async def leave(self) -> None:
        """Unregister every agent and delete its memories.

        Raises:
            RuntimeError: a call was refused.
        """
        for name in self._processes:
            async with Client(f"{self._url}&agent={name}") as client:
                result = await client.call_tool("unregister_agent", {"memories": "delete"})
                if result.is_error:
                    raise RuntimeError(f"{name} could not be unregistered: {result.structured_content}")

    async def _read(self, name: str, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            event: Event = json.loads(line)
            self._timeline.show(event)
            self._react(event)
        await process.wait()
        if name != self._killed and not self._finished.done():
            self._finished.set_exception(RuntimeError(f"{name} ended with {process.returncode}"))

    def _react(self, event: Event) -> None:
        match event:
            case {"event": "step", "agent": agent, "task": task} if (agent, task) == (VICTIM, VICTIMS_TASK):
                self._kill(task)
            case {"event": "claimed", "agent": agent, "task": task} if task == VICTIMS_TASK and agent != VICTIM:
                self.heir = agent
                self._timeline.say("team", f"“{task}” was taken over by {agent}")
            case {"event": "finished", "tasks": tasks}:
                self._finished.set_result(tasks)
            case _:
                pass

    def _kill(self, task: str) -> None:
        if not self._killed:
            self._killed = VICTIM
            self._processes[VICTIM].kill()
            self._timeline.say("team", f"kill -9 {VICTIM}, while it holds the lease of “{task}”")


def summary(tasks: list[dict[str, Any]]) -> Table:
    """A table of the tasks."""
    titles = {task["task_id"]: number for number, task in enumerate(tasks, 1)}
    table = Table("", "task", "needs", "priority", "after", "attempts", "held by", "state", title="How it went")
    for number, task in enumerate(tasks, 1):
        table.add_row(
            str(number),
            task["description"],
            ", ".join(task["required_capabilities"]),
            task["priority"],
            ", ".join(str(titles[other]) for other in task["depends_on"]),
            str(task["attempt"]),
            ", ".join(task["held_by"]),
            Text(task["state"], "green" if task["state"] == "completed" else "red"),
        )
    return table


async def run(url: str, console: Console) -> bool:
    """Run the team against a server; return whether every task was completed, including the killed agent's."""
    timeline = Timeline(console)
    team = Team(url, f"team-{uuid4().hex[:8]}", timeline)
    try:
        await team.start()
        tasks = await team.finished()
    finally:
        await team.stop()
    await team.leave()
    console.print(summary(tasks))
    completed = sum(task["state"] == "completed" for task in tasks)
    console.print(
        f"{completed} of {len(tasks)} tasks completed; {VICTIM} was killed and {team.heir} took its task over."
    )
    return completed == len(tasks) and team.heir is not None


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server's MCP URL; without one, a server is started for the run")
    url = parser.parse_args().url
    console = Console() if sys.stdout.isatty() else Console(width=120)
    if url:
        sys.exit(not asyncio.run(run(url, console)))
    console.print("Starting a server with temporary data …")
    with own_server() as own_url:
        succeeded = asyncio.run(run(own_url, console))
    sys.exit(not succeeded)


if __name__ == "__main__":
    main()
