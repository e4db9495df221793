"""The commands of `redis-memory`, on the session's stack."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from support.embedder_fixtures import wait_until
from support.sharing_helpers import register, share
from support.shell import Shell
from support.stack import Agent, Stack
from support.task_helpers import fail, lease, submit
from typer.main import get_command

from memory_core.errors import Forbidden, InvalidArgument, NotFound, StoreUnavailable, plain
from memory_core.records.keys import SWEEPER, Keys
from memory_server import cli
from memory_server.cli import lazy
from memory_server.cli.console import acting_as, exit_code
from memory_server.cli.reference import commands, markdown
from memory_server.operations.admin_view import all_grants, all_tasks

ROOT = Path(__file__).parents[2]
HOSTILE = "Red \x1b[31malert\x1b[0m and \u202eright to left [bold]not bold[/]"


@pytest_asyncio.fixture(loop_scope="session")
async def shell(stack: Stack, namespace: str) -> Shell:
    """A shell with a fresh namespace."""
    return Shell(stack, namespace)


async def test_search_and_show_have_only_the_agents_permission(shell: Shell, alice: Agent, bob: Agent) -> None:
    mine = await alice.store("The harbour opens at six.")
    theirs = await bob.store("The harbour closes at nine.")
    found = await shell.json("search", "when does the harbour open?", "--agent", "alice")
    assert [hit["memory"]["memory_id"] for hit in found["hits"]] == [mine]
    table = (await shell.run("search", "harbour", "--agent", "alice")).stdout
    assert mine in table
    assert "The harbour opens at six." in table
    assert (await shell.json("show", mine, "--agent", "alice"))["memory"]["content"] == "The harbour opens at six."
    assert isinstance(await shell.refused("show", theirs, "--agent", "alice"), NotFound)
    assert isinstance(await shell.refused("search", "harbour"), InvalidArgument)
    ops = [(entry["op"], entry["as"], entry["outcome"]) for entry in await shell.audited()]
    assert ops == [
        ("semantic_search", "alice", "ok"),
        ("semantic_search", "alice", "ok"),
        ("retrieve_memory", "alice", "ok"),
        ("retrieve_memory", "alice", "not_found"),
    ]


async def test_control_characters_in_memories_are_escaped(shell: Shell, alice: Agent) -> None:
    memory_id = await alice.store(HOSTILE)
    for words in (("search", "red alert"), ("show", memory_id)):
        shown = (await shell.run(*words, "--agent", "alice")).stdout
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "\\u001b[31malert" in shown
        assert "[bold]not bold[/]" in shown


def test_text_in_any_script_stays_readable() -> None:
    text = "Größe 大きさ حجم می\u200cخواهم 👩\u200d👩\u200d👧 ❤\ufe0f\u200d🔥 1\ufe0f\u20e3 naïve"
    assert plain(text) == text
    assert plain("a\x00b\x9bc\u2066d") == "a\\u0000b\\u009bc\\u2066d"


async def test_tasks_are_listed_requeued_and_cancelled(shell: Shell, alice: Agent, bob: Agent) -> None:
    await register(bob, "bob")
    dead = await submit(alice, "Weigh the anchor.", max_retries=0)
    await fail(bob, await lease(bob), "The chain is stuck.")
    waiting = await submit(alice, "Paint the mast.", required_capabilities=["painting"])
    listed = await shell.json("tasks", "list", "--state", "dead")
    assert [task["task_id"] for task in listed["tasks"]] == [dead]
    assert {task["task_id"] for task in (await shell.json("tasks", "list"))["tasks"]} == {dead, waiting}
    assert "The chain is stuck." in (await shell.run("tasks", "list")).stdout
    assert [event["op"] for event in (await shell.json("tasks", "show", dead))["history"]][-1] == "dead"
    assert (await shell.json("tasks", "requeue", dead))["state"] == "pending"
    cancelled = await shell.run("tasks", "cancel", waiting, "--reason", "no paint")
    assert cancelled.stdout == f"Task {waiting} is cancelled.\n"
    assert (await lease(bob))["task_id"] == dead
    assert (await alice.call("get_task", task_id=waiting))["task"]["error"] == "no paint"
    changes = [entry for entry in await shell.audited() if entry["op"] in {"requeue_task", "cancel_task"}]
    assert [(entry["op"], entry["ids"]) for entry in changes] == [("requeue_task", dead), ("cancel_task", waiting)]


async def test_grants_are_listed_and_revoked(shell: Shell, alice: Agent, bob: Agent) -> None:
    await register(alice, "alice")
    await register(bob, "bob")
    memory_id = await alice.store("Only for two.", context="boat")
    grant = await share(alice, "bob", context="boat")
    ended = await share(alice, "bob", memory_ids=[memory_id])
    assert (await shell.run("grants", "revoke", ended)).stdout.startswith(f"Revoked {ended}")
    listed = (await shell.json("grants", "list", "--agent", "bob"))["grants"]
    assert [(one["id"], one["state"], one["context"]) for one in listed] == [(grant, "active", "boat")]
    every = (await shell.json("grants", "list", "--all"))["grants"]
    assert {one["id"]: one["state"] for one in every} == {grant: "active", ended: "revoked"}
    assert (await shell.json("grants", "list", "--agent", "carol"))["grants"] == []
    await bob.call("retrieve_memory", memory_id=memory_id)
    assert (await shell.json("grants", "revoke", grant))["grants_ended"] == 1
    assert (await bob.raw("retrieve_memory", memory_id=memory_id)).is_error
    assert [entry["op"] for entry in await shell.audited()].count("revoke_shared_context") == 2


async def test_kept_memories_are_offered_to_an_agent(shell: Shell, alice: Agent, bob: Agent) -> None:
    await register(alice, "alice")
    await register(bob, "bob")
    memory_id = await alice.store("Only for the next one.")
    await alice.call("unregister_agent")
    offered = await shell.json("agents", "transfer", "alice", "--to", "bob")
    assert (offered["from_agent"], offered["to_agent"], offered["memories"]) == ("alice", "bob", 1)
    listed = (await shell.run("grants", "list")).stdout
    assert ("offered" in listed, "1 memory to take over" in listed) == (True, True)
    await bob.call("answer_offer", offer_id=offered["offer_id"])
    assert (await bob.call("retrieve_memory", memory_id=memory_id))["memory"]["trust"] == "received"
    assert [(entry["op"], entry["ids"]) for entry in await shell.audited() if entry["op"] == "offer_kept"] == [
        ("offer_kept", "alice bob")
    ]


async def test_only_operators_list_tasks_and_grants_of_all_agents(stack: Stack, namespace: str) -> None:
    caller, service = acting_as(namespace, "alice"), stack.server.service
    with pytest.raises(Forbidden):
        await all_tasks(service.backend, caller, states=(), agent=None, limit=1)
    with pytest.raises(Forbidden):
        await all_grants(service.backend, caller, agent=None, ended=True, limit=1)


async def test_agents_and_tokens_are_listed(shell: Shell, alice: Agent) -> None:
    await register(alice, "alice")
    (agent,) = (await shell.json("agents", "list"))["agents"]
    assert (agent["agent_id"], agent["alive"]) == ("alice", True)
    assert "alice" in (await shell.run("agents", "list", "--alive")).stdout
    issued = await shell.json("agents", "token", "alice")
    (listed,) = await shell.json("agents", "tokens")
    assert listed["id"] == issued["id"]
    assert "token" not in listed
    assert (await shell.json("agents", "revoke", issued["id"], scoped=False))["revoked"] is False


async def test_status_shows_processes_and_namespaces(shell: Shell, alice: Agent) -> None:
    await alice.store("One.")
    await wait_until(lambda: shell.stack.client.exists(SWEEPER))  # a server takes it a second after its start
    status = await shell.json("status", scoped=False)
    assert (status["redis"]["answers"], status["server"]["servers"]) == (True, True)
    assert status["sidecars"][0]["state"] == "ready"
    (own,) = [one for one in status["namespaces"] if one["namespace"] == shell.namespace]
    assert (own["memories"], own["waiting_for_vectors"]) == (1, 0)
    assert "password" not in json.dumps(status)
    shown = await shell.run("status", scoped=False)
    assert shell.namespace in shown.stdout
    nothing = await shell.run("status", "--json", scoped=False, REDIS_URL="unix:///nowhere.sock")
    assert (nothing.exit_code, json.loads(nothing.stdout)["redis"]["answers"]) == (1, False)


@pytest.mark.parametrize(
    "where",
    [
        ("--port", "1"),
        ("--url", "http://127.0.0.1:1"),
        ("--url", "http://localhost:1/"),
        ("--url", "https://[::1]:1"),
        ("--url", "ftp://127.0.0.1:1"),
        ("--url", "127.0.0.1:1"),
        ("--url", "http://127.0.0.1:99999"),
    ],
    ids=" ".join,
)
async def test_no_login_link_is_made_for_a_place_without_a_server(
    shell: Shell, alice: Agent, where: tuple[str, str]
) -> None:
    await alice.store("One.")
    before = await shell.stack.client.keys("rm:operator*")
    result = await shell.run("dashboard", *where)
    assert isinstance(result.exception, StoreUnavailable | InvalidArgument)
    assert "operator=" not in result.output
    assert await shell.stack.client.keys("rm:operator*") == before


async def test_login_link_of_another_machine_says_that_it_was_not_checked(shell: Shell, alice: Agent) -> None:
    await alice.store("One.")
    result = await shell.run("dashboard", "--url", "https://memory.invalid/team/")
    assert result.stdout.startswith("https://memory.invalid/team/#operator=")
    assert "no server answers at https://memory.invalid/team" in result.stderr


async def test_login_link_names_the_port_of_a_server_that_answers(shell: Shell, alice: Agent) -> None:
    await alice.store("One.")
    port = str(urlsplit(shell.stack.server.url).port)
    result = await shell.run("dashboard", "--port", port)
    assert result.output.startswith(f"http://127.0.0.1:{port}/#operator=")


async def test_bench_reports_measurements_and_deletes_its_memories(shell: Shell, stack: Stack) -> None:
    measured = await shell.json("bench", "--texts", "20", "--searches", "5", scoped=False)
    assert measured["embedded_per_second"] > 0
    assert measured["stored_per_second"] > 0
    assert measured["search_p50_ms"] > 0
    assert measured["sidecars"]
    assert [key async for key in stack.client.scan_iter(f"{Keys('bench').memory_prefix}*")] == []


def test_every_command_has_help_and_a_json_option() -> None:
    found = dict(commands(get_command(cli.app)))
    silent = [path[1:] for path, command in found.items() if not any("--json" in one.opts for one in command.params)]
    assert silent == [("serve",)]
    assert all(command.help for command in found.values())
    assert {one.help for command in found.values() for one in command.params if not one.help} == set()


def test_lazy_modules_match_their_declarations() -> None:
    tree = ast.parse(Path(lazy.__file__).read_text())
    imports = [part for part in ast.walk(tree) if isinstance(part, ast.ImportFrom)]
    modules = [part for part in imports if part.module and part.module.startswith("memory_")]
    declared = {one.asname or one.name: f"{part.module}.{one.name}" for part in modules for one in part.names}
    assert declared | {"uvloop": "uvloop"} == lazy._MODULES  # pyright: ignore[reportPrivateUsage]
    assert lazy.stop is sys.modules["memory_server.local.stop"]


def test_commands_page_is_current() -> None:
    written = (ROOT / "docs" / "cli.md").read_text()
    assert written == markdown(get_command(cli.app)), "run redis-memory reference > docs/cli.md"


def run_main(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process."""
    return subprocess.run(
        [sys.executable, "-c", "from memory_server.cli import main; main()", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("nonsense",), 2, "No such command"),
        (("search", "x"), 78, "invalid_argument: no agent is given (give --agent NAME"),
        (("search", "x", "--agent", "a"), 75, "store_unavailable:"),
    ],
)
def test_exit_codes_are_as_documented(words: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    ended = run_main(*words, REDIS_URL=f"unix://{tmp_path}/none.sock")
    assert (ended.returncode, said in ended.stderr, ended.stdout) == (code, True, "")


def test_shell_completes_commands() -> None:
    environment = {"COMP_WORDS": "redis-memory ta", "COMP_CWORD": "1", "_REDIS_MEMORY_COMPLETE": "complete_bash"}
    ended = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'redis-memory'; from memory_server.cli import main; main()"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout.split() == ["tasks"]


def test_transient_refusals_have_their_own_exit_code() -> None:
    assert exit_code(StoreUnavailable("no")) == 75
    assert exit_code(NotFound("no")) == 78


async def test_console_takes_agent_names_as_people_write_them(shell: Shell, alice: Agent) -> None:
    await alice.store("One.")
    for words in (("tasks", "list", "--agent"), ("grants", "list", "--agent"), ("quarantine", "add"), ("purge",)):
        assert isinstance(await shell.refused(*words, "에이전트"), InvalidArgument)
    assert "1 memory that alice wrote" in (await shell.run("quarantine", "add", "Alice")).stdout
    assert (await shell.run("quarantine", "remove", "ALICE")).stdout.startswith("The memories of alice ")
    assert "delete 1 memory" in str(await shell.refused("purge", "Alice"))


async def test_search_names_access_and_scores_as_the_tools_do(shell: Shell, alice: Agent) -> None:
    await alice.store("The harbour opens at six.")
    header, hit = (await shell.run("search", "harbour", "--agent", "alice")).stdout.splitlines()
    assert header.split() == ["score", "memory", "by", "access", "time", "content"]
    assert "alice  own, private  " in hit
    assert hit.startswith(".")
