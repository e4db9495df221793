"""`redis-memory audit` and the doctor, run as a person at a shell runs them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest_asyncio
from support.local_helpers import attached
from support.redis_users import SERVER
from support.stack import Stack, serving
from typer.testing import CliRunner, Result

from memory_core.crypto.keyring import new_key
from memory_core.errors import InvalidArgument
from memory_core.records.keys import Keys
from memory_server.cli import app
from memory_server.security.audit import reader

KEY = new_key()


@pytest_asyncio.fixture(loop_scope="session")
async def sealed(stack: Stack, namespace: str) -> str:
    """A namespace with three sealed entries."""
    async with serving(stack.redis.url_of(SERVER), master_key=KEY) as server, server.agent("ann", namespace) as ann:
        for number in range(3):
            await ann.store(f"Number {number}.", wait=False)
    counted = await reader.counters(stack.client, Keys(namespace))
    assert (counted.given, counted.sealed) == (3, 3)
    return namespace


async def run(stack: Stack, *arguments: str, key: str | None = KEY) -> Result:
    """Run the command line, in a thread since it brings an event loop of its own."""
    environment = {"REDIS_URL": stack.redis.url_of(SERVER), "MEMORY_MASTER_KEY": key}
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment)


async def test_verify_tells_what_is_whole_and_what_is_not(stack: Stack, sealed: str) -> None:
    told = await run(stack, "audit", "verify", "--namespace", sealed, "--json")
    assert told.exit_code == 0, told.stderr
    report = json.loads(told.stdout)
    assert (report["ok"], report["entries"], report["sealed_to"]) == (True, 3, 3)
    expected = await run(stack, "audit", "verify", "--namespace", sealed, "--expect", report["head"])
    keyless = await run(stack, "audit", "verify", "--namespace", sealed, key=None)
    other = await run(stack, "audit", "verify", "--namespace", sealed, "--json", key=new_key())
    stale = await run(stack, "audit", "verify", "--namespace", sealed, "--expect", f"2:{'0' * 64}")
    assert (expected.exit_code, report["head"] in expected.stdout, "whole" in expected.stdout) == (0, True, True)
    assert "no key is known here" in keyless.stdout
    assert (other.exit_code, json.loads(other.stdout)["problems"][0]["kind"]) == (1, "seal unknown key")
    assert stale.exit_code == 1
    second = (await stack.client.xrange(Keys(sealed).audit))[1][0]
    await stack.client.xdel(Keys(sealed).audit, second)
    told = await run(stack, "audit", "verify", "--namespace", sealed, "--json")
    problem = json.loads(told.stdout)["problems"][0]
    assert (told.exit_code, problem["number"], problem["kind"]) == (1, 2, "removed")


async def test_an_export_is_checked_without_redis_and_shows_a_change(stack: Stack, sealed: str, tmp_path: Path) -> None:
    plain, packed, changed = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.zst", tmp_path / "changed.jsonl"
    for to in (plain, packed):
        assert (await run(stack, "audit", "export", str(to), "--namespace", sealed)).exit_code == 0
    changed.write_text(plain.read_text().replace('"ann"', '"eve"', 1))
    results = [await run(stack, "audit", "verify", "--file", str(file)) for file in (plain, packed, changed)]
    assert [result.exit_code for result in results] == [0, 0, 1]
    assert "forged" in results[2].stdout
    rubbish = tmp_path / "rubbish.jsonl"
    rubbish.write_text("[]\n")
    refused = await run(stack, "audit", "verify", "--file", str(rubbish))
    assert isinstance(refused.exception, InvalidArgument)


async def test_tail_shows_the_last_entries(stack: Stack, sealed: str) -> None:
    lines = await run(stack, "audit", "tail", "-n", "2", "--no-follow", "--namespace", sealed)
    rows = await run(stack, "audit", "tail", "--no-follow", "--json", "--namespace", sealed)
    assert len(lines.stdout.splitlines()) == 2
    assert all("ann store_memory ok" in line for line in lines.stdout.splitlines())
    assert [json.loads(line)["n"] for line in rows.stdout.splitlines()] == ["1", "2", "3"]


async def test_the_doctor_says_how_far_the_audit_is_sealed_and_that_it_is_not_without_a_key(
    stack: Stack, sealed: str
) -> None:
    keyed, keyless = await run(stack, "doctor", "--json"), await run(stack, "doctor", "--json", key=None)
    details = [
        next(one for one in json.loads(told.stdout)["findings"] if (one["id"], one["where"]) == ("audit.seals", sealed))
        for told in (keyed, keyless)
    ]
    assert details[0]["seen"] == "3 entries, sealed up to 3"
    assert "no key is known here" in details[1]["seen"]


async def test_the_embedded_redis_needs_no_key_to_be_given(tmp_path: Path) -> None:
    async with attached(tmp_path):
        where = ("--data-dir", str(tmp_path), "--namespace", "home")
        assert (await bare("agents", "token", "ann", *where)).exit_code == 0
        told = await bare("audit", "verify", "--json", *where)
    report = json.loads(told.stdout)
    assert (told.exit_code, report["keyed"], report["entries"], report["unsigned"]) == (0, True, 1, 0)


async def bare(*arguments: str) -> Result:
    """Run the command line with nothing in the environment."""
    return await asyncio.to_thread(CliRunner().invoke, app, arguments)
