"""A stdio server that was killed gives its work back to the next one of the same agent at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Stack
from support.stdio import stdio_agent, stdio_pipe

from memory_server.local.paths import locate
from memory_server.local.servers import StdioSession, running_servers, stdio_session


def test_sessions_of_killed_processes_are_found_once(tmp_path: Path) -> None:
    paths = locate(tmp_path / "데이터")
    mine = StdioSession("one", "team", "ann", "")
    with stdio_session(paths, mine) as ended:
        assert ended == []
        with stdio_session(paths, StdioSession("two", "team", "ann", "")) as others:
            assert others == [], "the first process runs"
        (file,) = paths.servers.glob("*.session")
        left = file.read_bytes()
    assert list(paths.servers.iterdir()) == []
    file.write_bytes(left)
    for other in (("three", "team", "bob", ""), ("three", "x", "ann", ""), ("three", "team", "ann", "redis://a:1/0")):
        with stdio_session(paths, StdioSession(*other)) as ended:
            assert ended == []
    assert running_servers(paths) == []
    for name in ("bad.session", "odd.session"):
        (paths.servers / name).write_text({"bad.session": "{", "odd.session": '{"session": 7}'}[name])
    with stdio_session(paths, StdioSession("three", "team", "ann", "")) as ended:
        assert ended == ["one"]
    with stdio_session(paths, StdioSession("four", "team", "ann", "")) as ended:
        assert ended == []


@pytest.mark.long
async def test_next_stdio_server_gets_the_work_of_a_killed_one(stack: Stack, namespace: str, tmp_path: Path) -> None:
    url = stack.redis.url_of(SERVER)
    options = ("--namespace", namespace, "--data-dir", str(tmp_path / "data"))
    environment: dict[str, Any] = {"MEMORY_MASTER_KEY": MASTER_KEY}
    async with stdio_pipe(url, "ann", *options, **environment) as pipe:
        await pipe.call("register_agent", agent_type="custom")
        await pipe.call("distribute_task", description="Count the oars.")
        first = await pipe.call("get_pending_tasks")
        pipe.process.kill()
        await pipe.process.wait()
        async with stdio_agent("ann", *options, REDIS_URL=url, **environment) as agent:
            again = await agent.call("get_pending_tasks")
    (task,) = again["tasks"]
    assert task["resumed"], again
    assert task["task_id"] == first["tasks"][0]["task_id"]
    assert task["lease_token"] != first["tasks"][0]["lease_token"]
