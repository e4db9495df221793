"""A master key is turned on, is missing or is wrong, with the embedded Redis: from outside, as an operator sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client as McpClient
from support.local_helpers import until
from support.product import SERVE, serving, stop_redis
from support.stack import Agent, in_own_task

from memory_core.crypto.keyring import new_key
from memory_server.local.paths import locate, read_state

pytestmark = pytest.mark.redteam

KEY = new_key()
KEYED = ("env", f"MEMORY_MASTER_KEY={KEY}", *SERVE)


def run(data: Path, *words: str, key: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MEMORY_", "REDIS_"))}
    if key is not None:
        environment["MEMORY_MASTER_KEY"] = key
    command = [sys.executable, "-m", "memory_server", *words, "--data-dir", str(data)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


async def test_key_turned_on_restarts_the_sidecar_and_stops_servers_without_it(tmp_path: Path) -> None:
    data, first_log, second_log = tmp_path / "data", tmp_path / "first.log", tmp_path / "second.log"
    try:
        with first_log.open("w+b") as log, serving(SERVE, data, log):
            before = read_state(locate(data))
            with second_log.open("w+b") as other, serving(KEYED, data, other) as url:
                async with in_own_task(McpClient(f"{url}?agent=ann")) as client:
                    ann = Agent(client)
                    await ann.store("The lighthouse is painted red.", sensitive=True)
                    answer = await ann.call("semantic_search", query="colour of the beacon", mode="vector")
                    assert [hit["memory"]["content"] for hit in answer["hits"]] == ["The lighthouse is painted red."]
                    assert not answer["partial"], answer["reason"]
                after = read_state(locate(data))
                assert before is not None
                assert after is not None
                assert after.sidecar_pid != before.sidecar_pid
                assert (after.redis_pid, after.supervisor_pid) == (before.redis_pid, before.supervisor_pid)
                await until(lambda: "key_missing: the memories of namespace default" in first_log.read_text())
            with second_log.open("a+b") as other, serving(KEYED, data, other):
                for key in (None, new_key()):
                    for words in (("search", "beacon", "--agent", "ann"), ("integrity", "verify"), ("agents", "list")):
                        refused = run(data, *words, key=key)
                        assert (refused.returncode, refused.stdout) == (78, "")
                        assert refused.stderr.startswith("key_missing: the memories of namespace default are signed")
                        assert refused.stderr.count("\n") == 1
                    served = run(data, "serve", "--port", "0", key=key)
                    assert served.returncode == 78
                    assert served.stderr.splitlines()[-1].startswith("key_missing: ")
                assert json.loads(run(data, "audit", "verify", "--json", key=KEY).stdout)["ok"]
        for path in data.rglob("*"):
            assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    finally:
        stop_redis(data)
