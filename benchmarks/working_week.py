"""A scripted working week of three agents over MCP, as language models behind chat clients work.

They read only the text of answers: ids, lease tokens and cursors are found by patterns. They send no heartbeats, are
silent for long stretches, fill optional arguments with null and have two windows under one name; the server restarts
every night. `--source FOLDER` runs another checkout's server: `python -m benchmarks.working_week --source ../other`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from mcp import Client
from mcp_types import CallToolResult, TextContent

from benchmarks import results
from benchmarks.week_facts import AGAIN, FACTS

HEARTBEAT, LEASE, SILENCE = 1.0, 3.0, 2.2
SCALE = "1 s stands for 10 minutes: heartbeat 1 s (600 s), lease 3 s (1,800 s), silence 2.2 s (22 minutes)"
DAYS = 5
CHARS_PER_TOKEN = 4
_ID = re.compile(r"\b[0-9a-hjkmnp-tv-zA-HJKMNP-TV-Z]{26}\b")
_TOKEN = re.compile(r"\b[0-9a-hjkmnp-tv-z]{26}\.\d+\.[0-9a-f]{8,}\b")
_CURSOR = re.compile(r"cursor[=: \"]+([0-9]+-[0-9]+)")
_LOST = re.compile(r"\b(expired|lost)\b")


@dataclass(slots=True)
class Week:
    """The server, and what is counted."""

    source: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    counts: Counter[str] = field(default_factory=Counter[str])
    chars: Counter[str] = field(default_factory=Counter[str])
    tasks: list[str] = field(default_factory=list[str])
    refusals: list[str] = field(default_factory=list[str])

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        paths = os.pathsep.join(str(self.source / part) for part in ("server", "embedder"))
        command = [sys.executable, "-m", "memory_server", "serve", "--port", str(self.port), "--data-dir"]
        environment = {**os.environ, "PYTHONPATH": paths}
        self.process = subprocess.Popen(
            [*command, str(self.folder / "data")],
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("ab"),
            env=environment,
            cwd=self.source,
        )
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2):
                return
            time.sleep(0.1)
        raise RuntimeError(f"the server is not ready; see {self.folder / 'log'}")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None


class Window:
    """One chat window of an agent: a connection that is opened again when it is lost."""

    def __init__(self, week: Week, agent: str, *, fills_null: bool = False) -> None:
        self.week, self.agent, self.fills_null = week, agent, fills_null
        self._holder: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()
        self._client: Client | None = None
        self._optional: dict[str, list[str]] = {}

    async def open(self) -> None:
        """Connect, and read the list of tools and the instructions, as a model does at the start of a session."""
        url = f"http://127.0.0.1:{self.week.port}/mcp?agent={self.agent}&namespace=week&answers=text"
        entered: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._leaving = asyncio.Event()
        self._holder = asyncio.create_task(self._hold(url, entered, self._leaving))
        self._client = await asyncio.wait_for(entered, 20)
        tools = (await self._client.list_tools()).tools
        seen = [{"name": one.name, "description": one.description, "schema": one.input_schema} for one in tools]
        self.week.chars["tools"] += len(json.dumps(seen, separators=(",", ":")))
        self.week.chars["instructions"] += len(self._client.instructions or "")
        self._optional = {
            one.name: sorted(set(one.input_schema.get("properties", {})) - set(one.input_schema.get("required", [])))
            for one in tools
        }

    async def _hold(self, url: str, entered: asyncio.Future[Client], leaving: asyncio.Event) -> None:
        """Enter and leave the client in one task, as its cancel scopes need."""
        try:
            async with Client(url, mode="legacy") as client:
                entered.set_result(client)
                await leaving.wait()
        except Exception as error:
            if not entered.done():
                entered.set_exception(error)

    async def close(self) -> None:
        holder, self._holder, self._client = self._holder, None, None
        self._leaving.set()
        if holder:
            await asyncio.wait({holder}, timeout=5)

    async def call(self, tool: str, /, **arguments: Any) -> str:
        """Call a tool and return the text that the model sees; a refusal is text too."""
        sent = arguments
        if self.fills_null:
            sent = dict.fromkeys(self._optional.get(tool, [])) | arguments
        text, refused = await self._send(tool, sent)
        if refused and sent != arguments and "null" in text + json.dumps(sent):
            again, still_refused = await self._send(tool, arguments)
            self.week.counts["calls refused for null"] += not still_refused
            return again if not still_refused else text
        return text

    async def _send(self, tool: str, arguments: dict[str, Any]) -> tuple[str, bool]:
        for attempt in (1, 2):
            if self._client is None:
                await self.open()
            assert self._client is not None
            self.week.counts["calls"] += 1
            try:
                answer = await asyncio.wait_for(self._client.call_tool(tool, arguments), 30)
            except Exception as error:
                await self.close()
                if attempt == 2:
                    return f"error: {type(error).__name__}: {error}", True
                self.week.counts["sessions lost"] += 1
                continue
            assert isinstance(answer, CallToolResult)
            text = "\n".join(block.text for block in answer.content if isinstance(block, TextContent))
            self.week.chars["answers"] += len(text)
            if answer.is_error:
                self.week.refusals.append(f"{self.agent} {tool}: {text[:120]}")
            return text, bool(answer.is_error)
        return "", True

    async def register(self, **profile: Any) -> str:
        return await self.call("register_agent", heartbeat_seconds=HEARTBEAT, **profile)

    async def submit(self, description: str, **arguments: Any) -> str:
        found = _ID.search(
            await self.call("distribute_task", description=description, lease_seconds=LEASE, **arguments)
        )
        if found:
            self.week.tasks.append(found[0].lower())
        return found[0] if found else ""

    async def take(self) -> str:
        """Claim one task and return its lease token; empty if there is none."""
        found = _TOKEN.search(await self.call("get_pending_tasks", wait_seconds=1))
        return found[0] if found else ""

    async def finish(self, token: str, result: str) -> None:
        """Complete a task; work without a token, or whose token is refused, is lost."""
        task = token.partition(".")[0]
        if not token:
            self.week.counts["no task given"] += 1
            return
        self.week.counts["tasks finished"] += 1
        text = await self.call("complete_task", task_id=task, lease_token=token, result=result)
        if "completed" not in text.lower():
            self.week.counts["finished work refused"] += 1


async def ask(window: Window, question: str, number: int) -> None:
    """Ask a question and see whose fact comes first in the text of the answer."""
    text = await window.call("semantic_search", query=question, limit=5)
    fact = FACTS[number]
    keys = [key for one in FACTS for key in (one.key, one.newer_key) if key]
    first = min((key for key in keys if key in text), key=text.index, default="")
    window.week.counts["questions"] += 1
    window.week.counts["answered by the first hit"] += first == (fact.newer_key or fact.key)
    window.week.counts["stale answer first"] += bool(fact.newer_key) and first == fact.key


async def a_day(week: Week, day: int, lead: Window, dev: Window, other: Window, reviewer: Window) -> None:
    """Monday is 0. Facts are stored in the mornings, replaced on the third day, and asked about on the last two."""
    await lead.register(capabilities=["planning"])
    await dev.register(capabilities=["code"], max_tasks=2)
    await reviewer.register(capabilities=["review"])
    for window in (lead, dev, reviewer):
        await window.call("wait_for_events", timeout_seconds=0)
    windows = [lead, dev, reviewer]
    for position, fact in enumerate(FACTS):
        if position % 3 == day and day < 3:
            await windows[position % 2].call(
                "store_memory", content=fact.text, visibility="public", priority="high", context="kestrel"
            )
        if day == 3 and fact.newer:
            await windows[position % 2].call(
                "store_memory", content=fact.newer, visibility="public", priority="high", context="kestrel"
            )
    await work(week, day, lead, dev, other, reviewer)
    if day == DAYS - 1:
        for position, fact in enumerate(FACTS):
            await ask(windows[position % 3], fact.question, position)
        for question, number in AGAIN:
            await ask(dev, question, number)
    news = await lead.call("wait_for_events", timeout_seconds=0, kinds=["task"])
    if found := _CURSOR.search(news):
        await lead.call("wait_for_events", timeout_seconds=0, cursor=found[1])
    await lead.call("list_tasks")
    await dev.call("get_agent_memories", limit=5)
    await reviewer.call("list_agents")


async def work(week: Week, day: int, lead: Window, dev: Window, other: Window, reviewer: Window) -> None:
    """Give the day's tasks to two windows of the developer and to the reviewer, who are silent while they work."""
    for part in ("form", "report"):
        await lead.submit(f"Build the {part} of day {day}.", required_capabilities=["code"], priority="high")
    await lead.submit(f"Review the changes of day {day}.", required_capabilities=["review"])
    one, two, review = await dev.take(), await other.take(), await reviewer.take()
    await asyncio.sleep(SILENCE)
    await dev.call("semantic_search", query="how are invoices rounded", limit=3)
    await other.call("store_memory", content=f"The report of day {day} needs a total.", context="kestrel")
    await reviewer.call("semantic_search", query="which decisions matter for the review", limit=3)
    await asyncio.sleep(SILENCE)
    await dev.finish(one, f"The form of day {day} is ready.")
    await other.finish(two, f"The report of day {day} is ready.")
    await reviewer.finish(review, f"The changes of day {day} are fine.")
    for number in range(3):
        await lead.submit(f"Fix bug {day}{number}.", required_capabilities=["code"])
        await dev.finish(await dev.take(), f"Fixed bug {day}{number}.")
    await lead.call("get_task", task_id=week.tasks[-1]) if week.tasks else None


async def leases_lost(lead: Window, tasks: list[str]) -> int:
    """Count the ends of leases that nobody meant, from what the history of each task says."""
    lost = 0
    for task in tasks:
        lost += len(_LOST.findall(await lead.call("get_task", task_id=task)))
    return lost


async def run(week: Week) -> None:
    lead, dev, other = Window(week, "lead"), Window(week, "dev"), Window(week, "dev")
    reviewer = Window(week, "reviewer", fills_null=True)
    windows = [lead, dev, other, reviewer]
    for day in range(DAYS):
        week.start()
        for window in windows:  # the reviewer's window stays open over night
            if window is not reviewer or not day:
                await window.close()
                await window.open()
        await a_day(week, day, *windows)
        if day == DAYS - 1:
            calls, chars = week.counts["calls"], dict(week.chars)
            week.counts["leases lost"] = await leases_lost(lead, week.tasks)
            week.counts["calls"] = calls
            week.chars = Counter(chars)
        for window in windows if day == DAYS - 1 else (lead, dev, other):
            await window.close()
        week.stop()


def main() -> int:
    """Run the week and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path(__file__).resolve().parent.parent)
    source: Path = parser.parse_args().source.resolve()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        free.close()
        week = Week(source, Path(folder), port)
        try:
            asyncio.run(run(week))
        finally:
            week.stop()
            stop = [sys.executable, "-m", "memory_server", "stop", "--data-dir", str(week.folder / "data")]
            subprocess.run(stop, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    tokens = {name: round(number / CHARS_PER_TOKEN) for name, number in week.chars.items()}
    figures = {**week.counts, "tokens": sum(tokens.values()), "tokens of": tokens}
    print(SCALE)
    print(f"tokens are estimated as characters / {CHARS_PER_TOKEN}; {time.monotonic() - began:.0f} s")
    for name, value in figures.items():
        print(f"  {name}: {value}")
    for text, number in Counter(week.refusals).most_common(12):
        print(f"  refused {number}x: {text}")
    results.save("working_week", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
