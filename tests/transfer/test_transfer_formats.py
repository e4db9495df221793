"""Memories of other servers and services are imported from their documented formats, once and complete."""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.embedder_fixtures import RedisServer, wait_until
from support.redis_users import SERVER, denials
from support.stack import MASTER_KEY, Server, in_own_task, serving
from support.transfer_fixtures import FORMATS, chatgpt, claude, mcp_memory, mem0, sentence
from support.transfer_helpers import Shell, found, imported, lines_of

from memory_core.records.ids import is_id
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.store.connection import connect
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_server.transfer import files
from memory_server.transfer.writer import MAX_MEMORIES


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RedisServer]:
    """A Redis for these tests, without a sidecar: no test here waits for vectors."""
    running = RedisServer(tmp_path_factory.mktemp("moving"))
    running.start()
    yield running
    running.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(redis: RedisServer) -> AsyncGenerator[Client]:
    """A client with all permissions. Afterwards the ACL log must be empty."""
    connected = connect(redis.url)
    yield connected
    assert not await denials(connected)
    await connected.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def here(redis: RedisServer, client: Client) -> AsyncGenerator[Server]:
    """A server on that Redis."""
    async with in_own_task(serving(redis.url_of(SERVER), master_key=MASTER_KEY)) as running:
        yield running


@pytest.fixture
def shell(redis: RedisServer) -> Shell:
    """A shell on that Redis."""
    return Shell(redis.url_of(SERVER))


EXPECTED: dict[str, dict[str, Any]] = {
    "mcp-memory": {"memory_type": "context", "context": "Thing 4", "tags": ["knowledge-graph", "object"]},
    "mcp-memory-service": {"memory_type": "context", "tags": ["source:laptop", "topic3"], "source": "laptop"},
    "mem0": {"memory_type": "context", "context": "run-8"},
    "chatgpt": {"memory_type": "conversation", "source": "assistant", "tags": ["chatgpt"]},
    "claude": {"memory_type": "conversation", "source": "assistant", "tags": ["claude"]},
    "folder": {"memory_type": "document", "source": "part17/note17.md", "tags": ["md"]},
}


@pytest.mark.parametrize("name", FORMATS)
async def test_foreign_format_is_detected_and_imported_once(
    shell: Shell, here: Server, namespace: str, tmp_path: Path, name: str
) -> None:
    path = FORMATS[name](tmp_path, 60)
    seen = await imported(shell, path, namespace, "--dry-run")
    assert (seen["format"], seen["memories"], seen["bad"]) == (name, {"new": 60}, 0)
    assert not await here.service.namespaces.knows(namespace)
    assert (await imported(shell, path, namespace))["memories"] == {"new": 60}
    assert (await imported(shell, path, namespace))["memories"] == {"kept": 60}
    async with here.agent("ann", namespace) as ann, here.agent("bob", namespace) as bob:
        assert (await ann.call("get_agent_memories"))["total"] == 60
        [memory] = await found(ann, "mark17")
        assert sentence(17) in memory["content"]
        assert {key: memory[key] for key in EXPECTED[name]} == EXPECTED[name]
        assert (memory["visibility"], memory["priority"], memory["writer"]) == ("private", "medium", "ann")
        assert (memory.get("expires_at"), memory["vector"]) == (None, "pending")
        assert is_id(memory["memory_id"])
        if name not in ("mcp-memory", "folder"):
            assert memory["occurred_at"].startswith("2023-11-14T22:13:")
        assert await found(bob, "mark17") == []
    audited = await here.service.backend.read(lambda client: client.xrange(Keys(namespace).audit))
    entry = next(entry for _, entry in audited if entry[b"op"] == b"import")
    assert (entry[b"who"], entry[b"as"], len(entry[b"ids"].split())) == (b"console", b"ann", MAX_MEMORIES)


async def test_options_apply_to_every_imported_memory(
    shell: Shell, here: Server, namespace: str, tmp_path: Path
) -> None:
    options = ("--visibility", "public", "--priority", "low", "--tag", "old", "--tag", "from mem0")
    await imported(shell, mem0(tmp_path, 3), namespace, *options)
    async with here.agent("bob", namespace) as bob:
        [memory] = await found(bob, "mark1")
        assert (memory["visibility"], memory["priority"], memory["tags"]) == ("public", "low", ["old", "from mem0"])
        assert memory["expires_at"] is not None


async def test_foreign_memories_can_be_imported_as_sensitive(
    shell: Shell, here: Server, client: Client, redis: RedisServer, namespace: str, tmp_path: Path
) -> None:
    file, options = mem0(tmp_path, 3), ("--agent", "ann", "--namespace", namespace, "--sensitive")
    keyless = await Shell(redis.url_of(SERVER), key=None).run("import", file, *options)
    assert keyless.output.startswith("key_missing")
    public = await shell.run("import", file, *options, "--visibility", "public")
    assert "cannot be public" in public.output
    await imported(shell, file, namespace, "--sensitive")
    async with here.agent("ann", namespace) as ann:
        memories = (await ann.call("get_agent_memories"))["memories"]
        assert {memory["content"] for memory in memories} == {sentence(number) for number in range(3)}
    for memory in memories:
        record = await client.hgetall(Keys(namespace).memory(memory["memory_id"]))
        assert b"content" not in record


async def test_conversation_keeps_its_order_and_counts_tool_output(
    shell: Shell, here: Server, namespace: str, tmp_path: Path
) -> None:
    conversation = json.loads(chatgpt(tmp_path, 6).read_text())[0]
    tool = {"id": "t", "author": {"role": "tool"}, "content": {"content_type": "text", "parts": ["a tool said"]}}
    middle = conversation["mapping"][conversation["current_node"]]
    conversation["mapping"]["t"] = {"id": "t", "message": tool, "parent": middle["parent"], "children": []}
    middle["parent"] = "t"
    packed = tmp_path / "export.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("chat.html", "<html>")
        archive.writestr("conversations.json", json.dumps([conversation]))
    result = await shell.run("import", packed, "--agent", "ann", "--namespace", namespace, "--json")
    assert (result.code, result.json["whole"], result.json["memories"]) == (1, False, {"new": 6})
    assert result.json["passed_over"] == {"tool output": 1, "replaced message": 1}
    again = await shell.run("import", packed, "--agent", "ann", "--namespace", namespace)
    assert "made no memory: 1 × replaced message, 1 × tool output" in again.output
    async with here.agent("ann", namespace) as ann:
        memories = (await ann.call("get_agent_memories"))["memories"]
        assert [memory["content"] for memory in sorted(memories, key=lambda one: one["seq"])] == [
            sentence(number) for number in range(6)
        ]
        assert {memory["context"] for memory in memories} == {f"New chat ({conversation['conversation_id'][:8]})"}


async def test_conversation_attachments_become_documents(
    shell: Shell, here: Server, namespace: str, tmp_path: Path
) -> None:
    file = claude(tmp_path, 2)
    export = json.loads(file.read_text())
    export[0]["chat_messages"][0]["attachments"] = [
        {"file_name": "plan.md", "extracted_content": "The plan is marked7x."}
    ]
    file.write_text(json.dumps(export))
    assert (await imported(shell, file.parent, namespace))["memories"] == {"new": 3}
    async with here.agent("ann", namespace) as ann:
        [memory] = await found(ann, "marked7x")
        assert (memory["memory_type"], memory["source"]) == ("document", "plan.md")


async def test_long_files_are_chunked_and_found_by_their_end(
    shell: Shell, here: Server, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "book.md").write_text(" ".join(sentence(number) for number in range(150)))
    assert (await imported(shell, tmp_path / "book.md", namespace))["memories"] == {"new": 1}
    async with here.agent("ann", namespace) as ann:
        [memory] = await found(ann, "mark149")
        assert memory["pieces"] > 3


async def test_expired_foreign_memories_are_left_out(shell: Shell, namespace: str, tmp_path: Path) -> None:
    results = [
        {"id": "1", "memory": "Gone.", "expiration_date": "2020-01-01"},
        {"id": "2", "memory": "Here for long.", "expiration_date": "2999-01-01"},
    ]
    (tmp_path / "all.json").write_text(json.dumps(results))
    assert (await imported(shell, tmp_path / "all.json", namespace))["memories"] == {"expired": 1, "new": 1}


ENTITY = '{"type":"entity","name":"A","entityType":"b","observations":["c"]}'
BAD: list[tuple[str, str, str]] = [
    ("mcp-memory", f"{ENTITY}\n{{", "line 2: the file ends in the middle of record 2; 1 is whole"),
    ("mcp-memory", f"{ENTITY}\n{{]", "line 2: it is not JSON"),
    ("mcp-memory", '{"type":"entity","name":"A","entityType":"b","observations":7}',
     "line 1: observations is not a list"),
    ("mcp-memory", '{"type":"relation","from":"A","relationType":"b"}', "line 1: to is missing"),
    ("mcp-memory", '{"type":"entity","name":"A","entityType":"b","observations":[{}]}', "line 1: an observation"),
    ("mem0", '{"results":[{"id":"1","memory":"a"},{"id":"2","memory":""}]}', "results[1]: memory is not a text"),
    ("mem0", '[{"id":"1","memory":"a"},7]', "[1]: it is not an object"),
    ("mem0", '[{"id":"1","memory":"a","created_at":"long ago, maybe"}]', "[0]: created_at"),
    ("mem0", '[{"id":"1","memory":"a\\u0000b"}]', "[0]: content holds a NUL character"),
    ("mem0", '[{"id":"1","memory":"a\\ud800b"}]', "[0]: content holds a lone surrogate"),
    ("mem0", '[{"id":"1","memory":"a","metadata":7}]', "[0]: a value is of the wrong type"),
    ("mcp-memory-service", '{"export_metadata":{},"memories":{}}', "memories: it is not an object"),
    ("mcp-memory-service", '{"export_metadata":{},"memories":[{}]}', "memories[0]: content is missing"),
    ("chatgpt", '[{"mapping":{}},{"mapping":[]}]', "[1]: mapping is missing"),
    ("chatgpt", '[{"mapping":{"a":{"message":{"author":null}}}}]', "[0].mapping[a]: a value is of the wrong type"),
    ("claude", '[{"chat_messages":[{"text":"a","sender":"human"}]}]', "[0].chat_messages[0]: uuid is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "reason"), BAD)
async def test_unreadable_entries_stop_an_import_unless_skipped(
    shell: Shell, client: Client, namespace: str, tmp_path: Path, name: str, text: str, reason: str
) -> None:
    file = tmp_path / "some.json"
    file.write_text(text)
    refused = await shell.run("import", file, "--agent", "ann", "--namespace", namespace)
    assert refused.code == 78
    assert reason in refused.output
    assert not [key async for key in client.scan_iter(f"rm:{{{namespace}}}*")]
    result = await shell.run(
        "import", file, "--agent", "ann", "--namespace", namespace, "--skip-bad", "--format", name, "--json"
    )
    assert (result.code, result.json["bad"], result.json["whole"]) == (1, 1, False)
    assert result.json["bad_first"][0].startswith(reason.partition(":")[0])
    assert result.json["memories"].get("new", 0) == result.json["read"] - 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nowhere.json", "--agent", "ann"), "does not exist"),
        (("text.json", "--agent", "ann"), "unknown format"),
        (("damaged.jsonl.zst", "--agent", "ann"), "damaged, or not a zstandard"),
        (("good.json",), "these memories need an owner"),
        (("good.json", "--agent", "Ann!"), "is not a name"),
        (("good.json", "--agent", "ann", "--format", "notes"), "unknown format"),
        (("good.json", "--agent", "ann", "--format", "chatgpt"), "mapping is missing"),
    ],
)
async def test_import_that_cannot_run_says_why(
    shell: Shell, client: Client, namespace: str, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    (tmp_path / "text.json").write_text('"only a text"')
    (tmp_path / "damaged.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd rubbish")
    mem0(tmp_path, 1).rename(tmp_path / "good.json")
    result = await shell.run("import", tmp_path / arguments[0], *arguments[1:], "--namespace", namespace)
    assert result.code == 78
    assert reason in result.output
    assert not [key async for key in client.scan_iter(f"rm:{{{namespace}}}*")]


async def test_memory_of_another_owner_is_not_overwritten(
    shell: Shell, here: Server, client: Client, namespace: str, tmp_path: Path
) -> None:
    file = mem0(tmp_path, 2)
    await imported(shell, file, namespace)
    async with here.agent("ann", namespace) as ann:
        [memory] = await found(ann, "mark1")
    await client.hset(Keys(namespace).memory(memory["memory_id"]), "owner", "0" * 26)
    result = await shell.run("import", file, "--agent", "ann", "--namespace", namespace, "--json")
    assert (result.code, result.json["memories"]) == (1, {"kept": 1, "taken": 1})


async def test_import_over_the_quota_is_refused(redis: RedisServer, namespace: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"quotas": {"memories": 5}}))
    shell = Shell(redis.url_of(SERVER))
    result = await shell.run(
        "import", mem0(tmp_path, 9), "--agent", "ann", "--namespace", namespace, "--config", config
    )
    assert (result.code, result.output.partition(":")[0]) == (78, "quota_exceeded")


@pytest.mark.long
async def test_ten_thousand_memories_are_imported_without_waiting_for_vectors(
    shell: Shell, here: Server, namespace: str, tmp_path: Path
) -> None:
    result = await imported(shell, mcp_memory(tmp_path, 10_000), namespace)
    assert result["memories"] == {"new": 10_000}
    async with here.agent("ann", namespace) as ann:
        assert (await ann.call("memory_stats"))["total"] == 10_000
        for number in (0, 4321, 7999):
            [memory] = await found(ann, f"mark{number}")
            assert sentence(number) in memory["content"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def large_namespace(redis: RedisServer, here: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A namespace with enough memories that its export can be interrupted."""
    await imported(Shell(redis.url_of(SERVER)), mem0(tmp_path_factory.mktemp("some"), 3000), "large")
    return "large"


async def test_killed_export_resumes_to_an_identical_file(large_namespace: str, shell: Shell, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole.jsonl.zst", tmp_path / "all.jsonl.zst"
    await shell.done("export", whole, "--namespace", large_namespace)
    part = stopped.with_name(f"{stopped.name}.{large_namespace}.part")
    for _ in range(5):  # on a busy machine it may end before it is seen at work
        process = await shell.start("export", stopped, "--namespace", large_namespace)
        while process.returncode is None and not (part.exists() and part.stat().st_size > 0.4 * whole.stat().st_size):
            await asyncio.sleep(0.002)
        if process.returncode is None:
            process.kill()
            await process.wait()
            break
        stopped.unlink()
    assert not stopped.exists()
    done = await shell.done("export", stopped, "--namespace", large_namespace)
    assert 0 < done["resumed_from"] < 3000
    assert (done["left_out"], part.exists()) == ({}, False)
    assert whole.read_bytes() == stopped.read_bytes()


async def test_uncompressed_export_cut_within_a_line_resumes(
    large_namespace: str, shell: Shell, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "all.jsonl"
    await shell.done("export", whole, "--namespace", large_namespace)
    stopped.with_name(f"{stopped.name}.{large_namespace}.part").write_bytes(whole.read_bytes()[:200_000])
    assert 0 < (await shell.done("export", stopped, "--namespace", large_namespace))["resumed_from"] < 3000
    assert whole.read_bytes() == stopped.read_bytes()


async def test_resumed_export_reports_what_the_first_run_left_out(
    shell: Shell, client: Client, namespace: str, tmp_path: Path
) -> None:
    first, file = tmp_path / "first.jsonl", tmp_path / "all.jsonl"
    await imported(shell, mem0(tmp_path, 9), namespace)
    await shell.done("export", first, "--namespace", namespace)
    rows = first.read_bytes().splitlines(keepends=True)
    part = file.with_name(f"{file.name}.{namespace}.part")
    part.write_bytes(b"".join([*rows[:3], *rows[4:6]]))  # the first run left out the second memory
    await client.hset(Keys(namespace).memory(json.loads(rows[3])["id"]), "content", "A lie.")
    result = await shell.run("export", file, "--namespace", namespace, "--json")
    assert (result.code, result.json["left_out"], result.json["resumed_from"]) == (1, {"tampered": 1}, 3)
    assert result.json["memories"] == 8


async def test_unfinished_export_is_not_resumed_with_other_options(
    shell: Shell, large_namespace: str, tmp_path: Path
) -> None:
    part = tmp_path / f"all.jsonl.{large_namespace}.part"
    part.write_bytes(b'{"kind":"redis-memory","version":1,"model":"another","dimension":7,"vectors":true}\n')
    result = await shell.run("export", tmp_path / "all.jsonl", "--namespace", large_namespace)
    assert result.output.startswith("conflict: an unfinished export used other options")


async def test_killed_import_runs_again_and_imports_the_rest(
    shell: Shell, client: Client, here: Server, namespace: str, tmp_path: Path
) -> None:
    file, keys = mem0(tmp_path, 1500), Keys(namespace)
    process = await shell.start("import", file, "--agent", "ann", "--namespace", namespace)

    async def has_begun() -> bool:
        return bool(await client.xlen(keys.jobs(DEFAULT_MODEL)))

    await wait_until(has_begun, 30)
    process.kill()
    await process.wait()
    memories = (await imported(shell, file, namespace))["memories"]
    assert 0 < memories["kept"] < 1500
    assert memories["kept"] + memories["new"] == 1500
    async with here.agent("ann", namespace) as ann:
        assert (await ann.call("memory_stats"))["total"] == 1500


async def test_memories_of_a_deleted_agent_are_not_exported_or_imported(tmp_path: Path) -> None:
    alone = RedisServer(tmp_path)  # without a server, which would purge them
    alone.start()
    try:
        shell, keys, file, rest = Shell(alone.url_of(SERVER)), Keys("home"), tmp_path / "a.jsonl", tmp_path / "b.jsonl"
        await imported(shell, mem0(tmp_path, 3), "home")
        await shell.done("export", file, "--namespace", "home")
        connected = connect(alone.url)
        owner = await connected.hget(keys.agent("ann"), "owner")
        await connected.hdel(keys.agent("ann"), "owner", "owners")
        await connected.sadd(keys.tombstones, owner or b"")
        doomed = lines_of(file)[2]["id"]
        await connected.delete(keys.memory(doomed))
        result = await shell.run("import", file, "--namespace", "home", "--json")
        assert (result.code, result.json["memories"]) == (1, {"kept": 2, "unknown_owner": 1})
        done = await shell.done("export", rest, "--namespace", "home")
        assert (done["memories"], done["left_out"]) == (0, {"deleted agent": 2})
        await connected.aclose()
    finally:
        alone.kill()


@pytest.mark.parametrize("packed", [False, True])
def test_file_cut_anywhere_keeps_its_complete_lines(tmp_path: Path, packed: bool) -> None:
    rows = [f"line {number}\n".encode() for number in range(2 * files.FRAME + 10)]
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    with files.Writer(whole, packed=packed) as writer:
        assert list(writer.complete_lines()) == []
        for row in rows:
            writer.write(row)
        writer.finish()
    data = whole.read_bytes()
    for size in (0, 1, 5, len(data) // 2, len(data) - 1, len(data)):
        torn.write_bytes(data[:size])
        with files.Writer(torn, packed=packed) as writer:
            kept = list(writer.complete_lines())
            assert kept == rows[: len(kept)]
            for row in rows[len(kept) :]:
                writer.write(row)
            writer.finish()
        assert torn.read_bytes() == data, size
