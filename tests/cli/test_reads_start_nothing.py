"""A command that reads creates no store, no namespace and no process, and says what exists instead."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import pytest_asyncio
from support.local_helpers import attached
from support.shell import Shell
from support.stack import Agent, Stack
from typer.main import get_command
from typer.testing import CliRunner, Result

from memory_core.errors import InvalidArgument, MemoryServiceError, NotFound
from memory_core.records.keys import AUDITED, NAMESPACES
from memory_server import cli
from memory_server.cli.effects import EFFECTS, Effect
from memory_server.cli.reference import commands
from memory_server.local.paths import locate

READS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("search",): ("x", "--agent", "a"),
    ("show",): ("0" * 26, "--agent", "a"),
    ("duplicates",): ("a",),
    ("clusters",): ("a",),
    ("dashboard",): (),
    ("export",): ("out.jsonl",),
    ("status",): (),
    ("doctor",): (),
    ("namespaces", "list"): (),
    ("agents", "list"): (),
    ("agents", "tokens"): (),
    ("tasks", "list"): (),
    ("tasks", "show"): ("0" * 26,),
    ("grants", "list"): (),
    ("quarantine", "list"): (),
    ("integrity", "verify"): (),
    ("audit", "verify"): (),
    ("audit", "export"): ("audit.jsonl",),
    ("audit", "tail"): ("--no-follow",),
}
"""Every command that reads, with the arguments that it needs."""
CHANGES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("purge",): ("a",),
    ("reindex",): ("--status",),
    ("agents", "revoke"): ("0" * 26,),
    ("agents", "transfer"): ("a", "--to", "b"),
    ("tasks", "requeue"): ("0" * 26,),
    ("tasks", "cancel"): ("0" * 26,),
    ("grants", "revoke"): ("0" * 26,),
    ("keys", "rotate"): (),
    ("keys", "rewrap"): (),
    ("quarantine", "add"): ("a",),
    ("quarantine", "remove"): ("a",),
    ("integrity", "adopt"): (),
}
"""Every command that changes what exists."""
UNSCOPED = {("status",), ("doctor",), ("namespaces", "list"), ("agents", "revoke"), ("keys", "rewrap")}
"""Commands that read all namespaces, or none."""
FEW = [("search",), ("export",), ("audit", "tail"), ("dashboard",)]


def run(*words: str, **environment: str) -> Result:
    """Run a command with the embedded Redis of a data directory."""
    cleared = {"REDIS_URL": None, "MEMORY_DATA_DIR": None, "MEMORY_NAMESPACE": None}
    return CliRunner().invoke(cli.app, [*words], env={**cleared, **environment})


def refusal(result: Result) -> MemoryServiceError:
    """Return the refusal of a command that must be refused."""
    assert isinstance(result.exception, MemoryServiceError), (result.output, result.exception)
    return result.exception


@pytest_asyncio.fixture(loop_scope="session")
async def shell(stack: Stack, namespace: str) -> Shell:
    """A shell with a fresh namespace."""
    return Shell(stack, namespace)


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """A data directory with a memory in it, whose Redis does not run."""
    folder = tmp_path / "기억 memory"
    folder.mkdir(mode=0o700)
    (folder / "password").write_text("secret\n")
    (folder / "password").chmod(0o600)
    return folder


def test_every_command_has_its_effect_in_the_table() -> None:
    found = {tuple(path[1:]) for path, _ in commands(get_command(cli.app))}
    assert set(EFFECTS) - {("reference",)} == found
    assert {path for path, effect in EFFECTS.items() if effect is Effect.READ} == set(READS)
    assert {path for path, effect in EFFECTS.items() if effect is Effect.CHANGE} == set(CHANGES)


@pytest.mark.parametrize("path", [*READS, *CHANGES], ids=" ".join)
def test_mistyped_data_directory_is_refused_and_not_created(
    path: tuple[str, ...], memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    missing = memory.with_name("기억 memry")
    result = run(*path, *{**READS, **CHANGES}[path], "--data-dir", str(missing))
    assert result.exit_code != 0
    text = result.output if path in {("status",), ("doctor",)} else refusal(result).text()
    assert ("there is no memory in" in text, str(memory) in text) == (True, True), text
    assert not missing.exists()
    assert [one.name for one in tmp_path.iterdir()] == [memory.name]


@pytest.mark.parametrize("path", [path for path in READS if path not in {("status",), ("doctor",)}], ids=" ".join)
def test_read_does_not_start_the_redis_of_an_existing_memory(
    path: tuple[str, ...], memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal(run(*path, *READS[path], MEMORY_DATA_DIR=str(memory)))
    assert "no Redis is running" in error.text()
    assert f"redis-memory serve --data-dir '{memory}'" in error.text()
    assert [one.name for one in memory.iterdir()] == ["password"]


@pytest.mark.parametrize("path", [one for one in [*READS, *CHANGES] if one not in UNSCOPED], ids=" ".join)
async def test_mistyped_namespace_is_refused_and_not_created(
    path: tuple[str, ...], shell: Shell, alice: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await alice.store("One.")
    wrong = f"{shell.namespace}x"
    result = await shell.run(*path, *{**READS, **CHANGES}[path], "--namespace", wrong, scoped=False)
    error = refusal(result)
    assert isinstance(error, NotFound)
    assert f"there is no namespace '{wrong}'" in error.text()
    assert shell.namespace in error.hint
    client = shell.stack.client
    assert [key async for key in client.scan_iter(f"rm:{{{wrong}}}*")] == []
    assert not await client.sismember(NAMESPACES, wrong)
    assert not await client.sismember(AUDITED, wrong)


@pytest.mark.parametrize("path", FEW, ids=" ".join)
def test_data_directory_that_is_a_file_is_refused(path: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for words in (path, ("stop",), ("status",)):
        result = run(*words, *READS.get(words, ()), MEMORY_DATA_DIR=str(file))
        assert result.exit_code != 0
        assert "is a file" in (result.output + str(result.exception))
    assert file.read_text() == "mine"


def test_stop_with_a_mistyped_data_directory_names_those_that_exist(memory: Path) -> None:
    missing = memory.with_name("기억 memry")
    for how in ({"MEMORY_DATA_DIR": str(missing)}, {}):
        words = () if how else ("--data-dir", str(missing))
        error = refusal(run("stop", *words, **how))
        assert isinstance(error, NotFound)
        assert f"there is no memory in {missing}" in error.text()
        assert str(memory) in error.hint
        assert not missing.exists()
    assert run("stop", "--data-dir", str(memory)).output == f"nothing was running on {memory}\n"
    assert [one.name for one in memory.iterdir()] == ["password"]


async def test_namespaces_are_listed(shell: Shell, alice: Agent) -> None:
    await alice.store("One.")
    listed = await shell.json("namespaces", "list", scoped=False)
    assert shell.namespace in [one["namespace"] for one in listed]
    assert shell.namespace in (await shell.run("namespaces", "list", scoped=False)).stdout


async def test_dry_run_of_an_import_creates_no_memory_and_no_namespace(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text("One.")
    words = ("import", str(tmp_path), "--format", "folder", "--agent", "ann", "--dry-run")
    assert (await shell.json(*words))["memories"]["new"] == 1
    assert [key async for key in shell.stack.client.scan_iter(f"rm:{{{shell.namespace}}}*")] == []


async def test_agent_that_reads_a_new_namespace_leaves_no_keys(stack: Stack) -> None:
    for number, (tool, arguments) in enumerate(TOOLS.items()):
        name = f"unknown-{number}"
        async with stack.server.agent("reader", name) as agent:
            await agent.raw(tool, **arguments)
        await stack.server.service.auditor.flush()
        assert [key async for key in stack.client.scan_iter(f"rm:{{{name}}}*")] == [], tool
        assert not await stack.client.sismember(NAMESPACES, name), tool
        assert not await stack.client.sismember(AUDITED, name), tool


TOOLS: dict[str, dict[str, object]] = {
    "semantic_search": {"query": "anything"},
    "retrieve_memory": {"memory_id": "0" * 26},
    "get_agent_memories": {},
    "find_similar_memories": {},
    "get_pending_tasks": {"claim": False},
    "get_task": {"task_id": "0" * 26},
    "list_tasks": {},
    "list_agents": {},
    "get_shared_context": {},
    "gpu_status": {},
    "memory_stats": {},
    "wait_for_events": {"timeout_seconds": 0},
    "clear_memory": {"expired_only": True, "dry_run": True},
}


async def test_calls_that_find_nothing_to_change_leave_no_keys(stack: Stack) -> None:
    for number, (tool, arguments) in enumerate(FIND_NOTHING):
        name = f"unchanged-{number}"
        async with stack.server.agent("writer", name) as agent:
            await agent.raw(tool, **arguments)
        await stack.server.service.auditor.flush()
        left = [key async for key in stack.client.scan_iter(f"rm:{{{name}}}*")]
        assert left == [], (tool, arguments)
        assert not await stack.client.sismember(NAMESPACES, name), tool
        assert not await stack.client.sismember(AUDITED, name), tool


async def test_every_tool_but_registration_is_tried_in_a_new_namespace(alice: Agent) -> None:
    tried = {*TOOLS, *(tool for tool, _ in FIND_NOTHING)}
    listed = {tool.name for tool in (await alice.client.list_tools()).tools}
    assert listed - tried == {"register_agent"}


_LEASE = {"task_id": "0" * 26, "lease_token": f"{'0' * 26}.1.00"}
FIND_NOTHING: tuple[tuple[str, dict[str, object]], ...] = (
    ("get_pending_tasks", {}),
    ("get_pending_tasks", {"wait_seconds": 0.1}),
    ("complete_task", {**_LEASE, "result": "Done.", "store_result": True}),
    ("fail_task", {**_LEASE, "error": "It is stuck."}),
    ("cancel_task", {"task_id": "0" * 26}),
    ("requeue_task", {"task_id": "0" * 26}),
    ("update_agent_heartbeat", {"status": "busy", "metrics": {"done": 1}}),
    ("update_agent_heartbeat", {"lease_tokens": [_LEASE["lease_token"]]}),
    ("unregister_agent", {}),
    ("unregister_agent", {"memories": "delete"}),
    ("unregister_agent", {"memories": "transfer", "transfer_to": "reader"}),
    ("answer_offer", {"offer_id": "0" * 26}),
    ("share_context_with_agent", {"target_agent": "reader", "context": "harbour"}),
    ("revoke_shared_context", {"grant_id": "0" * 26}),
    ("update_memory", {"memory_id": "0" * 26, "content": "New."}),
    ("clear_memory", {"memory_ids": ["0" * 26], "confirm": True}),
    ("clear_memory", {"tags": ["old"], "confirm": True}),
    ("distribute_task", {"description": "Weigh.", "assign_to": "reader"}),
    ("distribute_task", {"description": "Weigh.", "depends_on": ["0" * 26]}),
    ("store_memory", {"content": "New.", "supersedes": ["0" * 26]}),
    ("batch_operations", {"operations": [{"op": "get_pending_tasks"}, {"op": "cancel_task", "task_id": "0" * 26}]}),
)


@pytest.mark.long
async def test_stop_and_reads_take_the_data_directory_of_the_environment(tmp_path: Path) -> None:
    folder = tmp_path / "데이터"
    link = tmp_path / "link"
    link.symlink_to(folder)
    async with attached(folder):
        status = json.loads((await asyncio.to_thread(run, "status", "--json", MEMORY_DATA_DIR=str(link))).output)
        assert status["redis"]["answers"] is True
        error = refusal(await asyncio.to_thread(run, "search", "x", "--agent", "a", MEMORY_DATA_DIR=str(link)))
        assert "has no namespace yet" in error.text()
        assert (await asyncio.to_thread(run, "stop", MEMORY_DATA_DIR=str(link))).output == "stopped\n"
    again = await asyncio.to_thread(run, "stop", MEMORY_DATA_DIR=str(folder))
    assert again.output == f"nothing was running on {folder}\n"
    assert locate(link).data_dir == folder


def test_empty_data_directory_is_a_refusal() -> None:
    assert isinstance(refusal(run("search", "x", "--agent", "a", "--data-dir", "")), NotFound | InvalidArgument)
