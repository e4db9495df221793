"""`redis-memory audit` and the doctor, run as a person at a shell runs them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest_asyncio
from embedder_fixtures import wait_until
from redis_users import SERVER
from stack import Stack, serving

from memory_core.keyring import new_key
from memory_core.keys import Keys
from memory_server.auditing import trail

KEY = new_key()


@pytest_asyncio.fixture(loop_scope="session")
async def sealed(stack: Stack, namespace: str) -> AsyncGenerator[str]:
    """A namespace with three sealed entries."""
    async with serving(stack.redis.url_of(SERVER), master_key=KEY) as server, server.agent("ann", namespace) as ann:
        for number in range(3):
            await ann.store(f"Number {number}.", wait=False)

        async def is_sealed() -> bool:
            return (await trail.counters(stack.client, Keys(namespace))).sealed == 3

        await wait_until(is_sealed)
        yield namespace


async def audit(
    stack: Stack, *arguments: str, key: str | None = KEY, command: str = "audit"
) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    environment = {**os.environ, "REDIS_URL": stack.redis.url_of(SERVER)} | ({"MEMORY_MASTER_KEY": key} if key else {})
    whole = [sys.executable, "-m", "memory_server", command, *arguments]
    return await asyncio.to_thread(
        subprocess.run, whole, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


async def test_verify_tells_what_is_whole_and_what_is_not(stack: Stack, sealed: str) -> None:
    told = await audit(stack, "verify", "--namespace", sealed, "--json")
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert (report["ok"], report["entries"], report["sealed_to"]) == (True, 3, 3)
    expected, keyless, other, stale = await asyncio.gather(
        audit(stack, "verify", "--namespace", sealed, "--expect", report["head"]),
        audit(stack, "verify", "--namespace", sealed, key=None),
        audit(stack, "verify", "--namespace", sealed, "--json", key=new_key()),
        audit(stack, "verify", "--namespace", sealed, "--expect", f"2:{'0' * 64}"),
    )
    assert (expected.returncode, report["head"] in expected.stdout, "whole" in expected.stdout) == (0, True, True)
    assert "no key is known here" in keyless.stdout
    assert (other.returncode, json.loads(other.stdout)["problems"][0]["kind"]) == (1, "seal unknown key")
    assert stale.returncode == 1
    second = (await stack.client.xrange(Keys(sealed).audit))[1][0]
    await stack.client.xdel(Keys(sealed).audit, second)
    told = await audit(stack, "verify", "--namespace", sealed, "--json")
    problem = json.loads(told.stdout)["problems"][0]
    assert (told.returncode, problem["number"], problem["kind"]) == (1, 2, "removed")


async def test_an_export_is_checked_without_redis_and_shows_a_change(stack: Stack, sealed: str, tmp_path: Path) -> None:
    plain, packed, changed = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.zst", tmp_path / "changed.jsonl"
    for to in (plain, packed):
        assert (await audit(stack, "export", str(to), "--namespace", sealed)).returncode == 0
    changed.write_text(plain.read_text().replace('"ann"', '"eve"', 1))
    results = await asyncio.gather(*(audit(stack, "verify", "--file", str(file)) for file in (plain, packed, changed)))
    assert [result.returncode for result in results] == [0, 0, 1]
    assert "forged" in results[2].stdout
    rubbish = tmp_path / "rubbish.jsonl"
    rubbish.write_text("[]\n")
    refused = await audit(stack, "verify", "--file", str(rubbish))
    assert refused.returncode == 78
    assert "invalid_argument" in refused.stderr


async def test_tail_shows_the_last_entries(stack: Stack, sealed: str) -> None:
    lines, rows = await asyncio.gather(
        audit(stack, "tail", "-n", "2", "--no-follow", "--namespace", sealed),
        audit(stack, "tail", "--no-follow", "--json", "--namespace", sealed),
    )
    assert len(lines.stdout.splitlines()) == 2
    assert all("ann store_memory ok" in line for line in lines.stdout.splitlines())
    assert [json.loads(line)["n"] for line in rows.stdout.splitlines()] == ["1", "2", "3"]


async def test_the_doctor_says_how_far_the_audit_is_sealed_and_that_it_is_not_without_a_key(
    stack: Stack, sealed: str
) -> None:
    keyed, keyless = await asyncio.gather(
        audit(stack, "--json", command="doctor"), audit(stack, "--json", command="doctor", key=None)
    )
    details = [
        {one["check"]: one["detail"] for one in json.loads(told.stdout)["findings"]}[f"audit {sealed}"]
        for told in (keyed, keyless)
    ]
    assert details[0] == "3 entries, sealed up to 3"
    assert "no key is known here" in details[1]
