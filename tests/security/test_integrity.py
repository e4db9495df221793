"""A record changed directly in Redis is detected, hidden from all callers and reported as missing."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from support.audit_helpers import read_entries
from support.console import console
from support.redis_users import SERVER
from support.sharing_helpers import found_ids, ids_of, refusal
from support.stack import Agent, Server, Stack, in_own_task, serving

from memory_core.crypto.integrity import Integrity
from memory_core.crypto.keyring import Keyring, Secret
from memory_core.package_data import resource
from memory_core.records.authority_codes import IntegrityFailure
from memory_core.records.keys import Keys
from memory_core.records.memory import CODE_FIELDS, SIGNED_FIELDS, UNSIGNED_FIELDS
from memory_server.engine.principals import resolve
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.index import loader
from memory_server.memories import update
from memory_server.operations import verify_integrity
from memory_server.operations.authority_records import adopt_authority
from memory_server.operations.verify_integrity import adopt, verify
from memory_server.security.open_records import load_readable

ALL: dict[str, Any] = {
    "tags": ["gold", "ünïcode"],
    "context": "island",
    "source": "Mel",
    "metadata": {"page": 7},
    "memory_type": "document",
    "priority": "critical",
}
CONTENT = "The treasure chest is buried under the old lighthouse, says Zoë's map of 宝島."
Row = dict[str, bytes | None]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def keyless(stack: Stack) -> AsyncGenerator[Server]:
    """A server without a key on the shared Redis."""
    async with in_own_task(serving(stack.redis.url_of(SERVER))) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def ann(server: Server, namespace: str) -> AsyncGenerator[Agent]:
    """An agent of that server."""
    async with in_own_task(server.agent("ann", namespace)) as agent:
        yield agent


def _signed(integrity: Integrity, namespace: str, memory_id: str, row: Row) -> Row:
    """Sign a row as the Functions do: from the HMAC pads."""
    seal = integrity.seal(namespace, memory_id, int(row["rev"] or 0))
    assert seal is not None
    values = [row.get(name) for name in SIGNED_FIELDS]
    text = b"".join(b"-" if value is None else str(len(value)).encode() + b":" + value for value in values)
    inner = hashlib.sha1(seal["inner"] + text, usedforsecurity=False).digest()
    code = hashlib.sha1(seal["outer"] + inner, usedforsecurity=False).hexdigest()
    return {**dict.fromkeys(SIGNED_FIELDS), **row, "mac": code.encode(), "mac_key": seal["signer"].encode()}


def _random_row(chance: random.Random) -> Row:
    row: Row = {name: chance.randbytes(chance.randrange(1, 30)) for name in SIGNED_FIELDS if chance.random() < 0.8}
    return row | {"rev": str(chance.randrange(1, 1000)).encode(), "owner": chance.randbytes(8)}


def _changes(chance: random.Random) -> list[Callable[[Row], None]]:
    name = chance.choice((*SIGNED_FIELDS, *CODE_FIELDS))

    def flip(row: Row) -> None:
        value = bytearray(row[name] or b"x")
        value[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
        row[name] = bytes(value)

    def drop(row: Row) -> None:
        row[name] = None if row[name] is not None else b""

    def lengthen(row: Row) -> None:
        row[name] = (row[name] or b"") + chance.randbytes(1)

    def move(row: Row) -> None:
        one, other = chance.sample(SIGNED_FIELDS, 2)
        row[one], row[other] = row[other], row[one]

    def shift(row: Row) -> None:
        """Move the end of one field to the start of the next existing one."""
        there = [field for field in SIGNED_FIELDS if row[field]]
        place = chance.randrange(len(there) - 1)
        value, following = row[there[place]] or b"", row[there[place + 1]] or b""
        row[there[place]], row[there[place + 1]] = value[:-1], value[-1:] + following

    return [flip, drop, lengthen, move, shift]


def test_ten_thousand_random_single_changes_are_detected() -> None:
    chance, integrity = random.Random(7), Integrity(Keyring([Secret(bytes(range(32)))]))
    seen = tried = 0
    while tried < 10_000:
        row = _signed(integrity, "team", "m1", _random_row(chance))
        assert integrity.check_head("team", "m1", row) is None
        changed = dict(row)
        chance.choice(_changes(chance))(changed)
        if changed != row:
            tried += 1
            seen += integrity.check_head("team", "m1", changed) is not None
    assert seen == tried


def test_code_is_bound_to_memory_namespace_revision_and_key() -> None:
    integrity = Integrity(Keyring([Secret(bytes(range(32)))]))
    row = _signed(integrity, "team", "m1", _random_row(random.Random(1)))
    assert integrity.check_head("team", "m1", row) is None
    assert integrity.check_head("team", "m2", row) is IntegrityFailure.ALTERED
    assert integrity.check_head("other", "m1", row) is IntegrityFailure.ALTERED
    assert (
        Integrity(Keyring([Secret(bytes(range(1, 33)))])).check_head("team", "m1", row) is IntegrityFailure.UNKNOWN_KEY
    )
    later = Integrity(Keyring([Secret(bytes(range(1, 33))), Secret(bytes(range(32)))]))
    assert later.check_head("team", "m1", row) is None
    assert integrity.check_head("team", "m1", row | {"mac": None, "mac_key": None}) is IntegrityFailure.UNSIGNED
    assert integrity.check_head("team", "m1", row | {"mac_key": None}) is IntegrityFailure.UNKNOWN_KEY
    assert integrity.check_head("team", "m1", row | {"mac": None}) is IntegrityFailure.ALTERED
    assert Integrity(Keyring()).check_head("team", "m2", row) is None


def test_lua_function_signs_the_same_fields_that_are_checked() -> None:
    code = resource("redis/functions/07_integrity.lua").read_text()
    found = re.search(r"local SIGNED = \{(.*?)\}", code, re.DOTALL)
    assert found is not None
    assert tuple(re.findall(r"'(\w+)'", found[1])) == SIGNED_FIELDS


async def test_every_record_field_is_signed_or_a_known_exception(ann: Agent, stack: Stack, namespace: str) -> None:
    short = await ann.store(CONTENT, **ALL)
    long = await ann.store("A word after another makes a sentence. " * 100, wait=False, **ALL)
    await ann.call("update_memory", memory_id=short, content=CONTENT + " Surely.", tags=[])
    for memory_id in (short, long):
        fields = {name.decode() for name in await stack.client.hkeys(Keys(namespace).memory(memory_id))}
        known = {*SIGNED_FIELDS, *UNSIGNED_FIELDS}
        assert {name for name in fields - known if not name.startswith(("vec_", "vec16_"))} == set()
        assert fields >= {"mac", "mac_key"}


async def _missing_everywhere(agent: Agent, memory_id: str) -> None:
    """The memory is refused by id, omitted from lists and reported as missing."""
    assert (await refusal(agent, "retrieve_memory", memory_id=memory_id))[0] == "tampered"
    assert (await refusal(agent, "update_memory", memory_id=memory_id, tags=["mine"]))[0] == "tampered"
    assert (await refusal(agent, "find_similar_memories", memory_id=memory_id))[0] == "tampered"
    listed = await agent.call("get_agent_memories", include_archive=True)
    assert memory_id not in ids_of(listed["memories"])
    found = await agent.call("semantic_search", query="treasure lighthouse", mode="keyword")
    assert memory_id not in found_ids(found)


async def _set(stack: Stack, key: str, field: str, value: bytes | None) -> None:
    await (stack.client.hdel(key, field) if value is None else stack.client.hset(key, field, value))


@pytest.mark.parametrize("field", ["content", "owner", "expires_at"])
async def test_altered_memory_is_missing_everywhere(ann: Agent, stack: Stack, namespace: str, field: str) -> None:
    memory_id = await ann.store(CONTENT, **ALL)
    await _set(stack, Keys(namespace).memory(memory_id), field, b"999")
    await _missing_everywhere(ann, memory_id)
    await stack.client.delete(Keys(namespace).memory(memory_id))


async def test_changed_added_or_removed_field_is_detected_until_restored(
    ann: Agent, stack: Stack, namespace: str
) -> None:
    memory_id = await ann.store(CONTENT, wait=False, **ALL)
    key, other = Keys(namespace).memory(memory_id), "Altered past the server."
    for field in (*SIGNED_FIELDS, *CODE_FIELDS):
        before = await stack.client.hget(key, field)
        for value in (other.encode(), b"1" if before != b"1" else b"2", None if before is not None else b""):
            await _set(stack, key, field, value)
            assert (await refusal(ann, "retrieve_memory", memory_id=memory_id))[0] == "tampered", (field, value)
        await _set(stack, key, field, before)
        assert (await ann.call("retrieve_memory", memory_id=memory_id))["memory"]["content"] == CONTENT


async def test_lists_and_searches_report_an_omitted_memory(ann: Agent, stack: Stack, namespace: str) -> None:
    memory_id, other = await ann.store(CONTENT), await ann.store("Another lighthouse.")
    assert not (await ann.call("semantic_search", query="lighthouse"))["partial"]
    await stack.client.hset(Keys(namespace).memory(memory_id), "content", "The lighthouse is for sale.")
    for tool, arguments in (
        ("semantic_search", {"query": "lighthouse"}),
        ("get_agent_memories", {}),
        ("find_similar_memories", {"memory_id": other}),
    ):
        answer = await ann.call(tool, **arguments)
        assert answer["partial"], tool
        assert "1 memory fails the integrity check" in answer["reason"]
        assert "for sale" not in json.dumps(answer)


async def test_caller_without_access_does_not_learn_of_the_alteration(
    ann: Agent, server: Server, stack: Stack, namespace: str
) -> None:
    memory_id = await ann.store(CONTENT)
    await stack.client.hset(Keys(namespace).memory(memory_id), "content", "Altered.")
    async with server.agent("eve", namespace) as eve:
        code, text = await refusal(eve, "retrieve_memory", memory_id=memory_id)
        unknown = await refusal(eve, "retrieve_memory", memory_id="0" * 26)
    assert (code, text.replace(memory_id, "0" * 26)) == unknown
    assert code == "not_found"


async def test_copied_or_unsigned_record_is_refused(ann: Agent, stack: Stack, namespace: str) -> None:
    memory_id = await ann.store(CONTENT)
    keys, elsewhere = Keys(namespace), "1" * 26
    row = await stack.client.hgetall(keys.memory(memory_id))
    await stack.client.hset(keys.memory(elsewhere), mapping=row)
    assert (await refusal(ann, "retrieve_memory", memory_id=elsewhere))[0] == "tampered"
    unsigned = {name: value for name, value in row.items() if not name.startswith(b"mac")}
    await stack.client.delete(keys.memory(elsewhere))
    await stack.client.hset(keys.memory(elsewhere), mapping=unsigned)
    code, text = await refusal(ann, "retrieve_memory", memory_id=elsewhere)
    assert (code, "integrity adopt" in text) == ("tampered", True)
    assert await ann.search("treasure lighthouse") == [CONTENT]
    assert (await ann.call("clear_memory", memory_ids=[elsewhere]))["deleted"] == 1


async def test_code_in_hex_of_an_earlier_version_stays_valid(
    ann: Agent, server: Server, stack: Stack, namespace: str
) -> None:
    keys, memory_id = Keys(namespace), await ann.store(LONG, wait=False)
    hashes = {keys.memory(memory_id): 20, keys.chunk(memory_id, 1): 32}
    for key, length in hashes.items():
        code = await stack.client.hget(key, "mac") or b""
        assert len(code) == length
        await stack.client.hset(key, "mac", code.hex())
    assert (await ann.call("retrieve_memory", memory_id=memory_id))["memory"]["content"] == LONG
    assert (await verify(server.service.backend, namespace)).bad == []
    signer = server.service.backend.integrity.signer or ""
    adopt_again = verify_integrity._adopt(server.service, namespace, {memory_id: signer})  # pyright: ignore[reportPrivateUsage]
    assert await adopt_again == 1
    assert len(await stack.client.hget(keys.memory(memory_id), "mac") or b"") == 20


async def test_every_tool_change_is_signed_again(ann: Agent, server: Server, namespace: str) -> None:
    memory_id = await ann.store(CONTENT, **ALL)
    for change in (
        {"content": "It was dug out."},
        {"tags": []},
        {"context": "town"},
        {"priority": "low"},
        {"visibility": "public"},
        {"metadata": {}},
        {"content": "A word after another makes a sentence. " * 100},
        {"content": "Short again."},
    ):
        answer = await ann.call("update_memory", memory_id=memory_id, **change)
        assert not answer["partial"]
    assert (await verify(server.service.backend, namespace)).healthy


async def test_record_altered_between_read_and_write_is_not_signed(
    ann: Agent, server: Server, stack: Stack, namespace: str
) -> None:
    memory_id = await ann.store(CONTENT)
    service = server.service
    request = RequestContext(Caller(namespace, "ann"))
    principal = await resolve(service.backend, request)
    record = await load_readable(service, request, principal, memory_id, whole=True)
    await stack.client.hset(Keys(namespace).memory(memory_id), "seq", 77)
    changed = replace(record, tags=("new",))
    status, _ = await update._write(  # pyright: ignore[reportPrivateUsage]
        service, request, principal, record, changed, await service.models.current(namespace)
    )
    assert status == "altered"
    assert (await refusal(ann, "retrieve_memory", memory_id=memory_id))[0] == "tampered"


LONG = "".join(f"Sentence number {number} tells of the harbour and its boats. " for number in range(120))


@pytest.mark.parametrize("what", ["a chunk's text", "a chunk's code", "the body"])
async def test_change_in_a_long_memorys_body_or_chunks_is_detected(
    ann: Agent, server: Server, stack: Stack, namespace: str, what: str
) -> None:
    memory_id = await ann.store(LONG + "The zebra lives in the attic.")
    keys = Keys(namespace)
    last = int(await stack.client.hget(keys.memory(memory_id), "pieces")) - 1
    assert last >= 2
    assert (await verify(server.service.backend, namespace)).healthy
    assert "zebra" in (await ann.search("zebra attic"))[0]
    if what == "a chunk's text":
        await stack.client.hset(keys.chunk(memory_id, last), "content", "The zebra lives in the cellar, obey it.")
    elif what == "a chunk's code":
        await stack.client.hdel(keys.chunk(memory_id, last), "mac")
    else:
        other = await ann.store(LONG + "The tiger lives in the attic.")
        body = await stack.client.hget(keys.memory(other), "body")
        await stack.client.hset(keys.memory(memory_id), "body", body)
    assert not (await verify(server.service.backend, namespace)).healthy
    if what == "the body":
        assert (await refusal(ann, "retrieve_memory", memory_id=memory_id))[0] == "tampered"
    else:
        answer = await ann.call("semantic_search", query="zebra attic", mode="keyword")
        assert answer["partial"]
        assert all("zebra" not in hit["memory"]["content"] for hit in answer["hits"])


async def test_keyless_server_neither_reads_nor_writes_signed_memories(
    ann: Agent, keyless: Server, namespace: str
) -> None:
    memory_id = await ann.store(CONTENT)
    async with keyless.agent("ann", namespace) as reader:
        assert (await refusal(reader, "retrieve_memory", memory_id=memory_id))[0] == "key_missing"
        assert (await refusal(reader, "store_memory", content="Mine."))[0] == "key_missing"
        assert (await refusal(reader, "update_memory", memory_id=memory_id, tags=["x"]))[0] == "key_missing"
    assert (await ann.call("retrieve_memory", memory_id=memory_id))["memory"]["tags"] == []


async def test_keyless_server_adds_no_owner_id_to_a_namespace_with_signed_ones(
    server: Server, keyless: Server, stack: Stack, namespace: str
) -> None:
    async with server.agent("ann", namespace) as ann:
        await ann.call("register_agent")  # no memory is signed yet
    async with keyless.agent("bob", namespace) as bob:
        for tool, arguments in (("register_agent", {}), ("store_memory", {"content": "Mine."})):
            assert (await refusal(bob, tool, **arguments))[0] == "key_missing"
    assert not await stack.client.exists(Keys(namespace).agent("bob"))


async def test_without_key_a_concurrent_change_is_not_overwritten(keyless: Server, namespace: str) -> None:
    service, request = keyless.service, RequestContext(Caller(namespace, "ann"))
    async with keyless.agent("ann", namespace) as ann:
        memory_id = await ann.store(CONTENT, wait=False)
        principal = await resolve(service.backend, request)
        record = await load_readable(service, request, principal, memory_id, whole=True)
        await ann.call("update_memory", memory_id=memory_id, tags=["first"])
        status, _ = await update._write(  # pyright: ignore[reportPrivateUsage]
            service,
            request,
            principal,
            record,
            replace(record, tags=("late",)),
            await service.models.current(namespace),
        )
        assert status == "stale"
        assert (await ann.call("retrieve_memory", memory_id=memory_id))["memory"]["tags"] == ["first"]


async def test_adopt_signs_unsigned_records_but_not_wrongly_signed_ones(
    keyless: Server, server: Server, stack: Stack, namespace: str
) -> None:
    keys = Keys(namespace)
    async with keyless.agent("ann", namespace) as reader:
        stored = [await reader.store(f"Note {number} on lighthouses.") for number in range(9)]
        stored.append(await reader.store(LONG))
    async with server.agent("ann", namespace) as ann:
        assert (await refusal(ann, "get_agent_memories"))[0] == "tampered"  # its owner id has no code either
        assert await adopt_authority(server.service.backend, namespace) == 1
        hidden = await ann.call("get_agent_memories")
        assert hidden["memories"] == []
        assert "10 memories have no integrity code" in hidden["reason"]
        await stack.client.hset(keys.memory(stored[0]), mapping={"mac": "0" * 40, "mac_key": "0" * 16})
        altered = await ann.store("Altered later.")
        await stack.client.hset(keys.memory(altered), "content", "Now.")
        report = await adopt(server.service, namespace)
        assert (report.adopted, report.failed, report.unsigned, report.memories) == (9, 2, 0, 11)
        assert {bad["memory_id"] for bad in report.bad} == {stored[0], altered}
        assert sorted(ids_of((await ann.call("get_agent_memories"))["memories"])) == sorted(stored[1:])
        assert (await ann.call("retrieve_memory", memory_id=stored[-1]))["memory"]["content"] == LONG
        await stack.client.delete(keys.chunk(stored[-1], 1))
        report = await verify(server.service.backend, namespace)
        assert "pieces are missing" in {bad["problem"] for bad in report.bad}


async def test_record_changed_since_inspection_is_not_adopted(
    ann: Agent, server: Server, stack: Stack, namespace: str
) -> None:
    """Skips records signed in the meantime and records that no longer match their code."""
    genuine, altered = await ann.store(CONTENT), await ann.store("Altered meanwhile.")
    await stack.client.hset(Keys(namespace).memory(altered), "content", "Now.")
    signer = server.service.backend.integrity.signer or ""
    for signers, adopted in (({genuine: "", altered: ""}, 0), ({altered: signer}, 0), ({genuine: signer}, 1)):
        number = await verify_integrity._adopt(server.service, namespace, signers)  # pyright: ignore[reportPrivateUsage]
        assert number == adopted
    assert (await refusal(ann, "retrieve_memory", memory_id=altered))[0] == "tampered"


async def test_cli_verifies_and_adopts(keyless: Server, stack: Stack, namespace: str) -> None:
    async with keyless.agent("ann", namespace) as reader:
        memory_id = await reader.store(CONTENT)
    code, output = await console(stack, "integrity", "verify", "--namespace", namespace)
    assert (code, json.loads(output)["unsigned"]) == (1, 1)
    code, output = await console(stack, "integrity", "adopt", "--namespace", namespace)
    assert (code, json.loads(output)["adopted"]) == (0, 1)
    entries = await read_entries(stack.client, namespace)
    assert [entry["ids"] for entry in entries if entry["op"] == "adopt"] == [memory_id]
    code, output = await console(stack, "integrity", "verify", "--namespace", namespace)
    assert (code, json.loads(output)["healthy"]) == (0, True)
    code, output = await console(stack, "integrity", "verify", "--namespace", namespace, key=False)
    assert (code, "key_missing" in output) == (78, True)


async def test_flaw_is_logged_once_without_content(
    ann: Agent, stack: Stack, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    memory_id = await ann.store(CONTENT)
    await stack.client.hset(Keys(namespace).memory(memory_id), "content", "Altered canary.")
    with caplog.at_level(logging.WARNING, "memory_core.crypto.integrity"):
        for _ in range(3):
            await ann.call("get_agent_memories")
    assert caplog.text.count(memory_id) == 1
    assert "canary" not in caplog.text


def test_loaded_fields_are_the_checked_fields() -> None:
    assert {*SIGNED_FIELDS, *CODE_FIELDS} <= {*loader.LOADED_FIELDS}
