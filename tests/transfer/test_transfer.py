"""An export and import restore a namespace: memories, owners and permissions."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from support.embedder_fixtures import wait_until
from support.long_content import FACT, prose, settled
from support.redis_users import SERVER
from support.sharing_helpers import readable, register, share
from support.stack import Agent, Server, Stack, in_own_task
from support.transfer_helpers import Shell, lines_of, rewrite

from memory_core.crypto.keyring import new_key
from memory_core.package_data import resource
from memory_core.records.keys import Keys
from memory_server.operations.verify_integrity import verify
from memory_server.transfer import export_lines as lines

SECRET = "The vault behind the painting opens with 9133."
QUESTION = "how do I get into the strongbox on the wall?"


@pytest.fixture
def shell(stack: Stack) -> Shell:
    """A shell on the session's Redis."""
    return Shell(stack.redis.url_of(SERVER))


@dataclass(slots=True)
class Filled:
    """A namespace with every kind of memory: ids of alice's memories by kind."""

    namespace: str
    ids: dict[str, str]
    alice: Agent


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def filled(stack: Stack) -> AsyncGenerator[Filled]:
    """One memory of each kind, and three grants: a tag, one memory, and one shared on.

    Tests change only what they import into other namespaces.
    """
    connect, namespace = stack.server.agent, "moving-from"
    async with (
        in_own_task(connect("alice", namespace)) as alice,
        in_own_task(connect("bob", namespace)) as bob,
        in_own_task(connect("carol", namespace)) as carol,
    ):
        for name, agent in (("alice", alice), ("bob", bob), ("carol", carol)):
            await register(agent, name)
        everything: dict[str, Any] = {
            "tags": ["gold", "ünïcode, with comma"], "context": "island", "source": "Mel", "memory_type": "document",
            "metadata": {"page": 7, "ratio": 1.5, "big": 2**70, "名": ["x", None]}, "priority": "critical",
            "occurred_at": "1883-05-04T10:00:00.123456Z",
        }  # fmt: skip
        ids = {
            "plain": await alice.store("The treasure is under the lighthouse, says Zoë's map of 宝島.", **everything),
            "public": await alice.store("Everybody may know the tide table.", visibility="public", tags=["gold"]),
            "long": await alice.store(prose(60) + FACT, priority="archive", context="island", metadata={"pages": 3}),
            "sensitive": await alice.store(SECRET, sensitive=True, metadata={"floor": 2}, tags=["house"]),
            "long and sensitive": await alice.store(prose(40, 8) + SECRET, sensitive=True, ttl_seconds=9000),
            "changed": await alice.store("This will be changed.", context="island"),
        }
        await alice.call("update_memory", memory_id=ids["changed"], content="This was changed twice.", tags=["late"])
        await bob.store("A note of Bob's, for no one.")
        await share(alice, "bob", tags=["gold"], permission="write", note="for the ship")
        await share(alice, "carol", memory_ids=[ids["sensitive"]], expires_in_seconds=9000)
        await share(bob, "carol", memory_ids=[ids["plain"]])
        await wait_until(lambda: settled(alice), 60)
        yield Filled(namespace, ids, alice)


async def test_export_of_an_imported_namespace_is_byte_identical(
    shell: Shell, filled: Filled, namespace: str, server: Server, tmp_path: Path
) -> None:
    there, here = filled.namespace, namespace
    first, second, again = (tmp_path / name for name in ("first.jsonl", "second.jsonl", "again.jsonl"))
    done = await shell.done("export", first, "--namespace", there)
    assert (done["memories"], done["agents"], done["grants"], done["left_out"]) == (7, 3, 3, {})
    done = await shell.done("import", first, "--namespace", here)
    assert done["memories"] == {"new": 7}
    assert done["others"] == {"agent imported": 3, "grant imported": 3}
    await shell.done("export", second, "--namespace", here)
    assert first.read_bytes() == second.read_bytes()
    assert SECRET.encode() not in first.read_bytes()

    audit_entries = await server.service.backend.read(lambda client: client.xlen(Keys(here).audit))
    done = await shell.done("import", first, "--namespace", here)
    assert done["memories"] == {"kept": 7}
    assert done["others"] == {"agent kept": 3, "grant kept": 3}
    assert await server.service.backend.read(lambda client: client.xlen(Keys(here).audit)) == audit_entries
    await shell.done("export", again, "--namespace", here)
    assert first.read_bytes() == again.read_bytes()


async def test_memories_that_an_agent_kept_are_imported_too(
    shell: Shell, namespace: str, server: Server, tmp_path: Path
) -> None:
    there, here = f"{namespace}-from", namespace
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    async with server.agent("leaver", there) as leaver, server.agent("heir", there) as heir:
        await register(leaver, "leaver")
        await register(heir, "heir")
        await leaver.store("Kept until an operator transfers it.")
        await leaver.call("unregister_agent", memories="keep")
    await shell.done("export", first, "--namespace", there)
    planned = await shell.done("import", first, "--namespace", here, "--dry-run")
    done = await shell.done("import", first, "--namespace", here)
    assert planned["memories"] == done["memories"] == {"new": 1}
    await shell.done("export", second, "--namespace", here)
    assert first.read_bytes() == second.read_bytes()


async def test_imported_namespace_reads_searches_and_shares_like_the_source(
    shell: Shell, filled: Filled, namespace: str, server: Server, tmp_path: Path
) -> None:
    here, file = namespace, tmp_path / "all.jsonl.zst"
    await shell.done("export", file, "--namespace", filled.namespace)
    await shell.done("import", file, "--namespace", here)
    async with (
        server.agent("alice", here) as alice,
        server.agent("bob", here) as bob,
        server.agent("carol", here) as carol,
    ):
        for memory_id in filled.ids.values():
            one, other = [
                (await agent.call("retrieve_memory", memory_id=memory_id))["memory"] for agent in (filled.alice, alice)
            ]
            assert one == other
        hits = (await alice.call("semantic_search", query=QUESTION, mode="vector"))["hits"]
        assert hits[0]["memory"]["content"] == SECRET
        found = await alice.call("semantic_search", query="safe in the cellar number", include_archive=True)
        assert found["hits"][0]["memory"]["memory_id"] == filled.ids["long"]
        order = list(filled.ids.values())
        assert await readable(bob, order) == [filled.ids["plain"], filled.ids["public"]]
        assert await readable(carol, order) == [filled.ids[name] for name in ("plain", "public", "sensitive")]
        await bob.call("update_memory", memory_id=filled.ids["plain"], content="Bob may still write here.")
        stored = await alice.store("The next one on the island.", context="island")
        assert (await alice.call("retrieve_memory", memory_id=stored))["memory"]["seq"] == 4
    assert (await verify(server.service.backend, here)).healthy
    audited = await server.service.backend.read(lambda client: client.xrange(Keys(here).audit))
    assert {b"console"} == {entry[b"who"] for _, entry in audited if entry[b"op"] == b"import"}


async def test_import_without_vectors_embeds_again(
    shell: Shell, filled: Filled, namespace: str, server: Server, tmp_path: Path
) -> None:
    here, first, second = namespace, tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    await shell.done("export", first, "--namespace", filled.namespace, "--no-vectors")
    assert not any("vectors" in line for line in lines_of(first)[1:])
    await shell.done("import", first, "--namespace", here)
    async with server.agent("alice", here) as alice:
        await wait_until(lambda: settled(alice), 60)
        assert (await alice.call("semantic_search", query=QUESTION, mode="vector"))["hits"][0]["memory"][
            "content"
        ] == SECRET
    await shell.done("export", second, "--namespace", here, "--no-vectors")
    assert first.read_bytes() == second.read_bytes()


async def test_vectors_of_another_model_are_not_imported(
    shell: Shell, filled: Filled, namespace: str, server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "all.jsonl"
    await shell.done("export", file, "--namespace", filled.namespace)
    header, *rest = lines_of(file)
    other = rewrite(file, [{**header, "model": "another", "dimension": 7}, *rest])
    done = await shell.done("import", other, "--namespace", namespace, "--trust")
    assert done["notes"] == ["its vectors are of another; all vectors are computed again with all-MiniLM-L6-v2"]
    assert done["memories"] == {"new": 7}
    async with server.agent("alice", namespace) as alice:
        await wait_until(lambda: settled(alice), 60)


async def test_every_line_matches_the_published_schema(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    published = json.loads(resource("schemas/export.json").read_text())
    assert published == lines.schema()
    await shell.done("export", tmp_path / "all.jsonl", "--namespace", filled.namespace)
    for line in lines_of(tmp_path / "all.jsonl"):
        Draft202012Validator(published).validate(line)
    assert not Draft202012Validator(published).is_valid({"kind": "memory"})


async def test_import_into_a_used_namespace_overwrites_nothing(
    shell: Shell, filled: Filled, namespace: str, server: Server, tmp_path: Path
) -> None:
    here, file = namespace, tmp_path / "all.jsonl"
    await shell.done("export", file, "--namespace", filled.namespace)
    async with server.agent("alice", here) as alice:
        own = await alice.store("Alice was here before.")
        done = await shell.run("import", file, "--namespace", here, "--json")
        assert (done.code, done.json["memories"]) == (1, {"new": 7})
        assert done.json["others"] == {"agent imported": 3, "grant other_agents": 2, "grant no_parent": 1}
        ids = [own, *filled.ids.values()]
        assert await readable(alice, ids) == ids
        await alice.call("update_memory", memory_id=filled.ids["changed"], content="Changed here.")
        done = (await shell.run("import", file, "--namespace", here, "--json")).json
        assert done["memories"] == {"kept": 6, "differs": 1}
        kept = (await alice.call("retrieve_memory", memory_id=filled.ids["changed"]))["memory"]
        assert kept["content"] == "Changed here."


async def test_unsigned_export_brings_new_agents_but_no_grants(
    shell: Shell, filled: Filled, namespace: str, server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "all.jsonl"
    await shell.done("export", file, "--namespace", filled.namespace)
    *others, end = lines_of(file)
    unsigned = rewrite(file, [*others, {name: value for name, value in end.items() if name not in ("key", "mac")}])
    for memories, agents in (({"new": 7}, "imported"), ({"kept": 7}, "kept")):
        done = await shell.run("import", unsigned, "--namespace", namespace, "--json")
        assert (done.code, done.json["memories"]) == (1, memories)
        assert done.json["others"] == {f"agent {agents}": 3, "grant unsigned": 3}
        assert "no key of this server signed this file" in done.json["notes"][0]
    async with server.agent("alice", namespace) as alice, server.agent("bob", namespace) as bob:
        order = list(filled.ids.values())
        assert await readable(alice, order) == order
        assert await readable(bob, order) == [filled.ids["public"]]
    done = await shell.done("import", unsigned, "--namespace", namespace, "--trust")
    assert done["others"] == {"agent kept": 3, "grant imported": 3}


async def test_sensitive_memories_need_the_same_master_key(
    shell: Shell, filled: Filled, namespace: str, stack: Stack, tmp_path: Path
) -> None:
    file, url, here = tmp_path / "all.jsonl", shell.url, namespace
    refused = await Shell(url, key=None).run("export", file, "--namespace", filled.namespace)
    assert refused.code == 78
    assert refused.output.startswith("key_missing")
    await shell.done("export", file, "--namespace", filled.namespace)
    refused = await Shell(url, key=new_key()).run("import", file, "--namespace", here)
    assert refused.code == 78
    assert "2 of 13 records cannot be read" in refused.output
    assert "key that this server does not have" in refused.output
    assert not [key async for key in stack.client.scan_iter(f"rm:{{{here}}}*")]

    without = tmp_path / "clear.jsonl"
    done = await shell.done("export", without, "--namespace", filled.namespace, "--no-sensitive")
    assert (done["memories"], done["left_out"]) == (5, {"sensitive": 2})


async def test_altered_lines_of_a_file_are_refused(
    shell: Shell, filled: Filled, namespace: str, stack: Stack, tmp_path: Path
) -> None:
    file, here = tmp_path / "all.jsonl", namespace
    await shell.done("export", file, "--namespace", filled.namespace)
    good = lines_of(file)
    at = {line.get("id"): number for number, line in enumerate(good)}
    sensitive, plain = good[at[filled.ids["sensitive"]]], good[at[filled.ids["plain"]]]
    other = good[at[filled.ids["long and sensitive"]]]
    changes: list[tuple[dict[str, Any], str]] = [
        ({**sensitive, "sealed": {**sensitive["sealed"], "text": other["sealed"]["text"]}}, "belongs to another"),
        ({**sensitive, "rev": 2}, "belongs to another"),
        ({**sensitive, "visibility": "public"}, "cannot be public"),
        ({**plain, "content": "both", "sealed": sensitive["sealed"]}, "either content or sealed"),
        ({**plain, "tags": ["a\x1fb"]}, "control character"),
        ({**plain, "scope": "pub"}, "not permitted"),
        ({**plain, "vectors": [sensitive["sealed"]["text"]]}, "dimensions"),
        ({**plain, "id": "../../etc"}, "id"),
        ({**plain, "created_at": "yesterday"}, "2026-05-04T10:00:00.000000Z"),
    ]
    for changed, reason in changes:
        number = at[changed["id"]] if changed["id"] in at else at[plain["id"]]
        result = await shell.run(
            "import", rewrite(file, [*good[:number], changed, *good[number + 1 :]]), "--namespace", here
        )
        assert result.code == 78, changed
        assert f"line {number + 1}: " in result.output
        assert reason in result.output
    result = await shell.run("import", rewrite(file, good[:-1]), "--namespace", here)
    assert "file is incomplete" in result.output
    whole = file.read_bytes()
    for part in range(1, 10):
        (file.parent / "cut.jsonl").write_bytes(whole[: len(whole) * part // 10])
        result = await shell.run("import", file.parent / "cut.jsonl", "--namespace", here)
        assert (result.code, "nothing was imported" in result.output) == (78, True), result.output
        assert "the file ends in the middle of" in result.output
    result = await shell.run("import", rewrite(file, [*good[:5], *good[6:]]), "--namespace", here)
    assert "expected " in result.output
    assert not [key async for key in stack.client.scan_iter(f"rm:{{{here}}}*")]


async def test_export_leaves_out_records_tampered_with_in_redis(
    shell: Shell, filled: Filled, namespace: str, stack: Stack, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    await shell.done("export", first, "--namespace", filled.namespace)
    await shell.done("import", first, "--namespace", namespace)
    await stack.client.hset(Keys(namespace).memory(filled.ids["public"]), "content", "A lie.")
    result = await shell.run("export", second, "--namespace", namespace, "--json")
    assert (result.code, result.json["left_out"], result.json["whole"]) == (1, {"tampered": 1}, False)
    assert b"A lie." not in second.read_bytes()


async def test_quarantine_is_exported_and_imported(
    shell: Shell, filled: Filled, namespace: str, server: Server, tmp_path: Path
) -> None:
    first, second, further = tmp_path / "first.jsonl", tmp_path / "second.jsonl", f"{namespace}-further"
    await shell.done("export", first, "--namespace", filled.namespace)
    await shell.done("import", first, "--namespace", namespace)
    await shell.run("quarantine", "add", "alice", "--namespace", namespace)
    await shell.done("export", second, "--namespace", namespace)
    await shell.done("import", second, "--namespace", further)
    for here, seen in ((namespace, []), (further, []), (filled.namespace, [filled.ids["public"]])):
        async with server.agent("bob", here) as bob:
            assert await readable(bob, [filled.ids["public"]]) == seen


async def test_export_refuses_existing_files_and_unknown_namespaces(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    file = tmp_path / "all.jsonl"
    await shell.done("export", file, "--namespace", filled.namespace)
    assert (await shell.run("export", file, "--namespace", filled.namespace)).output.startswith("conflict")
    await shell.done("export", file, "--namespace", filled.namespace, "--force")
    result = await shell.run("export", tmp_path / "none.jsonl", "--namespace", "never-used")
    assert result.output.startswith("not_found: there is no namespace 'never-used'")
    assert os.listdir(tmp_path) == ["all.jsonl"]


@given(st.integers(-62_135_510_400_000_000, 253_402_300_799_000_000))
def test_times_survive_formatting_and_parsing(microseconds: int) -> None:
    kept = float(f"{microseconds / 1_000_000:.6f}")
    text = lines.to_text(kept)
    assert text is not None
    assert len(text) == 27
    assert lines.from_text(text) == kept
