"""`redis-memory audit`, and what the doctor reports about the audit log."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
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
    """Run the command line in a thread, because it starts its own event loop."""
    environment = {"REDIS_URL": stack.redis.url_of(SERVER), "MEMORY_MASTER_KEY": key}
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment)


async def test_verify_detects_a_wrong_key_a_stale_head_and_a_removed_entry(stack: Stack, sealed: str) -> None:
    result = await run(stack, "audit", "verify", "--namespace", sealed, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["ok"], report["entries"], report["sealed_to"]) == (True, 3, 3)
    expected = await run(stack, "audit", "verify", "--namespace", sealed, "--expect", report["head"])
    keyless = await run(stack, "audit", "verify", "--namespace", sealed, key=None)
    other = await run(stack, "audit", "verify", "--namespace", sealed, "--json", key=new_key())
    stale = await run(stack, "audit", "verify", "--namespace", sealed, "--expect", f"2:{'0' * 64}")
    assert (expected.exit_code, report["head"] in expected.stdout, "verified" in expected.stdout) == (0, True, True)
    assert "no key is configured" in keyless.stdout
    assert (other.exit_code, json.loads(other.stdout)["problems"][0]["kind"]) == (1, "seal unknown key")
    assert stale.exit_code == 1
    second = (await stack.client.xrange(Keys(sealed).audit))[1][0]
    await stack.client.xdel(Keys(sealed).audit, second)
    result = await run(stack, "audit", "verify", "--namespace", sealed, "--json")
    problem = json.loads(result.stdout)["problems"][0]
    assert (result.exit_code, problem["number"], problem["kind"]) == (1, 2, "removed")


async def test_export_is_verified_without_redis_and_a_changed_one_fails(
    stack: Stack, sealed: str, tmp_path: Path
) -> None:
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
    assert all(line.split()[1].endswith("Z") for line in lines.stdout.splitlines())
    assert [json.loads(line)["n"] for line in rows.stdout.splitlines()] == ["1", "2", "3"]


@pytest.mark.long
async def test_doctor_reports_sealed_entries_and_a_missing_key(stack: Stack, sealed: str) -> None:
    keyed, keyless = await run(stack, "doctor", "--json"), await run(stack, "doctor", "--json", key=None)
    details = [
        next(one for one in json.loads(each.stdout)["findings"] if (one["id"], one["where"]) == ("audit.seals", sealed))
        for each in (keyed, keyless)
    ]
    assert details[0]["seen"] == "3 entries, sealed up to 3"
    assert "no key is configured" in details[1]["seen"]


async def test_embedded_redis_needs_no_configured_key(tmp_path: Path) -> None:
    async with attached(tmp_path):
        where = ("--data-dir", str(tmp_path), "--namespace", "home")
        assert (await run_without_settings("agents", "token", "ann", *where)).exit_code == 0
        result = await run_without_settings("audit", "verify", "--json", *where)
    report = json.loads(result.stdout)
    assert (result.exit_code, report["keyed"], report["entries"], report["unsigned"]) == (0, True, 1, 0)


async def run_without_settings(*arguments: str) -> Result:
    """Run the command line without settings in the environment."""
    return await asyncio.to_thread(CliRunner().invoke, app, arguments)
