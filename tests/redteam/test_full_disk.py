"""The disk of the embedded Redis fills up: reads go on, writes say why they fail, and both recover."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from mcp import Client as McpClient
from support.local_helpers import alive, until
from support.product import SERVE, serving
from support.stack import Agent, Refused, answer_of, in_own_task

from memory_server.local.paths import LocalPaths, State, read_state

pytestmark = pytest.mark.redteam

MEGABYTE = bytes(1 << 20)
ON_SMALL_DISK = 'echo $$ > "$1" && mount -t tmpfs -o size=48m,mode=700 small "$0" && shift && exec "$@"'
"""Mounts a small disk that only this process and its children see; needs no root."""


def state_of(data: Path) -> State:
    state = read_state(LocalPaths(data))  # not resolved: `root` of a process is a link
    assert state is not None
    return state


def fill(folder: Path) -> Path:
    """Write a file until the disk is full."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(MEGABYTE):
                pass
        except OSError:
            return filler
    raise AssertionError("the disk is not full")


async def refused_store(agent: Agent) -> Refused:
    """Store until Redis notices that its disk is full."""
    for number in range(100):
        try:
            await agent.store(f"Number {number}.", wait=False)
        except Refused as error:
            return error
        await asyncio.sleep(0.1)
    raise AssertionError("no write is refused")


async def stored(agent: Agent, content: str) -> str:
    """Store once Redis has noticed that there is space."""
    for _ in range(100):
        result = await agent.raw("store_memory", content=content)
        if not result.is_error:
            return answer_of(result)["memory_id"]
        await asyncio.sleep(0.2)
    raise AssertionError("writes stay refused")


async def test_full_disk_keeps_reads_and_recovers(tmp_path: Path) -> None:
    mounted, pid_file, log_file = tmp_path / "data", tmp_path / "pid", tmp_path / "log"
    mounted.mkdir()
    command = ["unshare", "-rm", "sh", "-c", ON_SMALL_DISK, str(mounted), str(pid_file), *SERVE]
    with log_file.open("w+b") as log, serving(command, mounted, log) as url:
        data = Path(f"/proc/{int(pid_file.read_text())}/root{mounted}")
        before = state_of(data)
        try:
            async with in_own_task(McpClient(f"{url}?agent=ann")) as client:
                ann = Agent(client)
                kept = await ann.store("The lighthouse is red.")
                filler = fill(data)
                refused = await refused_store(ann)
                assert refused.code == "store_full"
                assert "disk of Redis is full" in refused.text
                assert before.sidecar_pid is not None
                os.kill(before.sidecar_pid, signal.SIGKILL)  # the supervisor records this
                until_then = time.monotonic() + 3
                while time.monotonic() < until_then:
                    assert (await ann.call("retrieve_memory", memory_id=kept))["memory"]["memory_id"] == kept
                    assert kept in str(await ann.call("semantic_search", query="lighthouse", mode="keyword"))
                    await asyncio.sleep(0.2)
                assert alive(before.supervisor_pid)
                filler.unlink()
                await until(lambda: state_of(data).sidecar_restarts and state_of(data).sidecar_pid, 30)
                again = await stored(ann, "Space is back.")
                assert (await ann.call("retrieve_memory", memory_id=again))["memory"]["content"] == "Space is back."
            after = state_of(data)
            assert (after.supervisor_pid, after.redis_pid) == (before.supervisor_pid, before.redis_pid)
        finally:
            os.kill(before.supervisor_pid, signal.SIGTERM)
            await until(lambda: not alive(before.supervisor_pid), 40)
