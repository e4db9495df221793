"""A replaced Functions library gains no authority, and an older release never replaces a newer library."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from support.audit_helpers import flushed_entries
from support.embedder_fixtures import wait_until
from support.redis_users import MIGRATE
from support.sharing_helpers import readable, refusal, register, share
from support.stack import Agent, Server, Stack

from memory_core.errors import StoreRefused, UnsafeStart
from memory_core.records.authority_codes import Authority
from memory_core.records.keys import LIBRARY_PROOF
from memory_core.redis_client import Client
from memory_core.store import functions
from memory_core.store.functions import library_code, load_library
from memory_server.engine import redis_backend
from memory_server.operations.stats.memory_stats import is_ready

pytestmark = pytest.mark.redteam
NEWER = "99.1.0"


async def replace_library(client: Client, code: str) -> None:
    """Load a library as an attacker with the right to do so."""
    assert code != library_code()
    await client.execute_command("FUNCTION", "LOAD", "REPLACE", code)


async def loaded_code(client: Client) -> str:
    """The code of the library in Redis."""
    (found,) = await client.execute_command("FUNCTION", "LIST", "LIBRARYNAME", functions.LIBRARY, "WITHCODE")
    return found[b"library_code"].decode()


async def restorations(client: Client, server: Server, namespace: str) -> int:
    """How often the audit says that a server loaded its library again."""
    entries = await flushed_entries(server, client, namespace)
    return sum(entry["op"] == "restore_functions" for entry in entries)


@pytest_asyncio.fixture(loop_scope="session")
async def redis(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Client]:
    """The Redis of the stack, which gets its library back.

    The server does not look at its library by itself, so that it calls what a test loaded.
    """
    monkeypatch.setattr(redis_backend, "LIBRARY_SECONDS", math.inf)
    await stack.server.service.backend.check_library()  # a check that had begun has ended before this one
    yield stack.client
    await stack.client.execute_command("FUNCTION", "LOAD", "REPLACE", library_code())
    await stack.server.service.backend.check_library()


async def test_replaced_library_cannot_make_a_grant(redis: Client, alice: Agent, bob: Agent) -> None:
    for agent, name in ((alice, "alice"), (bob, "bob")):
        await register(agent, name)
    secret = await alice.store("The safe opens with the queen's birthday.", sensitive=True)
    code = library_code().replace("own = own, via = via}", f"own = {{'i:{secret}'}}, via = via}}")
    await replace_library(redis, code.replace("if not rm.is_proven(entry, id, request.proof)", "if false"))
    await share(alice, "bob", tags=["harmless"])
    assert await readable(bob, [secret]) == []


async def test_replaced_library_receives_no_key_of_authorisation_records(redis: Client, alice: Agent) -> None:
    """It can write any record, but none that the server accepts."""
    await replace_library(redis, library_code().replace("request.candidate, request.proof)", "'0', request.proof)"))
    assert (await refusal(alice, "store_memory", content="Mine."))[0] == "tampered"


async def test_changed_library_is_restored_within_seconds(
    redis: Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = server.service.settings.namespace
    before = await restorations(redis, server, namespace)
    await replace_library(redis, library_code() + "\n-- changed")
    monkeypatch.undo()

    async def is_restored() -> bool:
        return await loaded_code(redis) == library_code()

    await wait_until(is_restored, 15)
    await server.service.backend.check_library()  # the check that restored it may still run
    assert await restorations(redis, server, namespace) == before + 1


async def test_library_of_another_name_is_not_called(redis: Client, server: Server, alice: Agent) -> None:
    """Two libraries cannot have Functions of the same names, so this one keeps the genuine one out."""
    await redis.execute_command("FUNCTION", "DELETE", functions.LIBRARY)
    try:
        await replace_library(redis, library_code().replace(f"name={functions.LIBRARY}", "name=other"))
        await server.service.backend.check_library()
        code, text = await refusal(alice, "store_memory", content="Mine.")
        assert (code, "cannot be loaded" in text) == ("store_unavailable", True)
    finally:
        await redis.execute_command("FUNCTION", "DELETE", "other")
    await server.service.backend.check_library()
    assert await alice.store("Mine.")


async def test_newer_library_stays_and_is_named(redis: Client) -> None:
    newer = re.sub(r"(description|return) (= )?'[\d.]+'", rf"\1 \2'{NEWER}'", library_code())
    await replace_library(redis, newer)
    with pytest.raises(UnsafeStart, match=re.escape(NEWER)):
        await load_library(redis)
    assert await loaded_code(redis) == newer


async def test_unsigned_newer_library_receives_no_memory_keys(redis: Client, server: Server, alice: Agent) -> None:
    backend = server.service.backend
    await replace_library(redis, library_code(NEWER))
    await backend.check_library()
    code, text = await refusal(alice, "store_memory", content="Nothing.")
    assert (code, NEWER in text) == ("store_unavailable", True)
    with pytest.raises(StoreRefused, match=re.escape(NEWER)):
        await is_ready(server.service)
    integrity, digest = backend.integrity, functions.Library(NEWER, library_code(NEWER)).digest
    proof = integrity.sign_authority(Authority.LIBRARY, "", functions.LIBRARY, NEWER, digest)
    before = await redis.get(LIBRARY_PROOF)
    await redis.set(LIBRARY_PROOF, f"{NEWER} {digest} {proof}")
    await backend.check_library()
    assert await alice.store("Something.")
    await redis.set(LIBRARY_PROOF, before)


async def test_migration_user_may_not_load_functions(redis: Client) -> None:
    answer = await redis.execute_command("ACL", "DRYRUN", MIGRATE, "FUNCTION", "LOAD", "x")
    assert b"no permissions" in answer
