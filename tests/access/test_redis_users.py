"""The users of redis/users.acl may do what the product needs, and nothing beyond it.

The stack that all tests share runs under them, and its fixture looks for refusals at the end.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from redis import exceptions as redis_errors
from support.embedder_fixtures import RedisServer, Team, wait_until
from support.redis_users import MIGRATE, SERVER, SIDECAR, acl_text, denials
from support.stack import Agent, Server, Stack
from support.task_helpers import complete, fail, joined, lease, submit

from memory_core.errors import StoreUnavailable
from memory_core.package_data import resource
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.store.connection import check_server, connect
from memory_core.store.functions import load_library
from memory_server.operations.sweeper import sweep

USERS = (SERVER, SIDECAR, MIGRATE)
FOR_NOBODY = (
    "FLUSHALL|FLUSHDB|KEYS rm:*|SHUTDOWN NOSAVE|REPLICAOF NO ONE|MONITOR|RANDOMKEY|WAIT 0 1|SYNC|SWAPDB 0 1|"
    "CONFIG SET dir /tmp|CONFIG GET requirepass|CONFIG REWRITE|DEBUG SLEEP 0|MODULE LOAD /tmp/x.so|"
    "EVAL return 0|EVALSHA 0 0|SCRIPT LOAD return|FUNCTION FLUSH|FUNCTION DELETE rm1|FUNCTION KILL|"
    "ACL WHOAMI|ACL LIST|ACL SETUSER x on|CLIENT KILL ID 1|CLIENT LIST|CLIENT PAUSE 1|FT.CONFIG SET TIMEOUT 1|"
    "PUBLISH rm:x 1|SUBSCRIBE rm:x|GET other:1|SET other:1 x|HGETALL other:1|DEL other:1|MIGRATE h 1 k 0 1|DUMP rm:x"
).split("|")
FOR_SERVER_ALONE = (
    "FT.SEARCH rm:{team}:idx:memory *|FT.CREATE x SCHEMA y TEXT|FT.DROPINDEX x|FUNCTION LOAD x|FUNCTION LIST|"
    "SADD rm:namespaces x|XADD rm:bell:{0} * a b|HSET rm:{team}:meta model x|HSET rm:{team}:grant:x a b|"
    "HSET rm:{team}:task:x a b|HSET rm:{team}:agent:alice id x|HSET rm:{team}:owner:x agent mallory|"
    "XADD rm:{team}:audit * a b|HGETALL rm:{team}:agent:alice|GET rm:{team}:emb:vec:alice:x|SET rm:sweeper x|"
    "FCALL rm1_owner 2 rm:{team}:agent:alice rm:{team}:owner:x x"
).split("|")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RedisServer]:
    """A Redis with one namespace and somebody else's hash, on which refusals may be provoked."""
    redis = RedisServer(tmp_path_factory.mktemp("guarded"))
    redis.start()
    try:
        async with connect(redis.url) as almighty:
            await Team(almighty, "fake", 16).open()
            await almighty.hset("other:1", "text", "payroll")
        yield redis
    finally:
        redis.kill()


@pytest_asyncio.fixture(loop_scope="session")
async def as_server(guarded: RedisServer) -> AsyncGenerator[Client]:
    """Redis as the server sees it."""
    async with connect(guarded.url_of(SERVER)) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def as_sidecar(guarded: RedisServer) -> AsyncGenerator[Client]:
    """Redis as a sidecar sees it."""
    async with connect(guarded.url_of(SIDECAR)) as client:
        yield client


async def test_all_of_the_product_works_and_nothing_is_refused(
    stack: Stack, server: Server, alice: Agent, bob: Agent, namespace: str
) -> None:
    waited = await alice.store("The owl is grey.", wait=True, idempotency_key="owl")
    long = await alice.store("The fox digs a den under the hill. " * 150, visibility="shared", context="den")
    stored = await alice.call(
        "batch_operations",
        operations=[{"op": "store_memory", "content": "The hare is quick."}, {"op": "memory_stats"}],
    )
    assert stored["succeeded"] == 2

    async def all_embedded() -> bool:
        return (await alice.call("memory_stats"))["vector_backlog"] == 0

    await wait_until(all_embedded)
    assert (await alice.search("which bird is grey?"))[0] == "The owl is grey."
    await alice.call("find_similar_memories", memory_id=waited, limit=1)
    await alice.call("update_memory", memory_id=long, content="The fox sleeps. " * 300)
    await alice.call("register_agent")
    await bob.call("register_agent", capabilities=["dig"])
    cursor = (await bob.call("wait_for_events", timeout_seconds=0))["cursor"]
    grant = (await alice.call("share_context_with_agent", target_agent="bob", context="den"))["grant_id"]
    assert (await bob.call("wait_for_events", cursor=cursor, timeout_seconds=10))["events"]
    await bob.call("get_shared_context")
    await alice.call("revoke_shared_context", grant_id=grant)
    async with joined(server, namespace, "carol") as carol:
        await submit(alice, "Dig a hole.", assign_to="carol")
        await complete(carol, await lease(carol), result={"depth": 2})
        await submit(alice, "Fill a hole.", assign_to="carol", max_retries=0)
        await fail(carol, await lease(carol))
        await carol.call("unregister_agent")
    await sweep(server.service, patience=0)
    await alice.call("clear_memory", memory_ids=[waited, long], confirm=True)
    await alice.call("gpu_status")
    assert await denials(stack.client) == set()


@pytest.mark.parametrize("user", USERS)
async def test_what_endangers_redis_or_others_is_refused(guarded: RedisServer, user: str) -> None:
    async with connect(guarded.url) as almighty:
        assert await allowed(almighty, "default", FOR_NOBODY) == list(FOR_NOBODY)
        assert await allowed(almighty, user, FOR_NOBODY) == []


async def test_a_sidecar_may_touch_only_what_is_about_vectors(guarded: RedisServer) -> None:
    async with connect(guarded.url) as almighty:
        assert await allowed(almighty, SIDECAR, FOR_SERVER_ALONE) == []


async def test_migrations_may_not_run_functions_that_the_server_loaded(guarded: RedisServer) -> None:
    async with connect(guarded.url) as almighty:
        assert await allowed(almighty, MIGRATE, ["FCALL rm1_owner 0", "CLIENT UNBLOCK 1"]) == []
    async with connect(guarded.url_of(MIGRATE)) as client:
        await check_server(client)
        assert await load_library(client) is False


async def test_a_function_has_the_rights_of_its_caller(guarded: RedisServer, as_sidecar: Client) -> None:
    code = (
        "#!lua name=sly\nredis.register_function('sly', "
        "function(keys, args) return redis.call('SET', 'rm:sweeper', 'x') end)"
    )
    async with connect(guarded.url) as almighty:
        await almighty.function_load(code, replace=True)
        assert await almighty.execute_command("FCALL", "sly", 0) == b"OK"
        with pytest.raises(redis_errors.ResponseError, match="ACL failure in script"):
            await as_sidecar.execute_command("FCALL", "sly", 0)


async def test_a_stolen_sidecar_can_read_and_spoil_memories_of_every_namespace(as_sidecar: Client) -> None:
    """What it needs to do its work cannot be told from misuse; docs/decisions/0011 says so."""
    memory = Keys("elsewhere").memory("x")
    await as_sidecar.hset(memory, "content", "spoilt")
    assert await as_sidecar.hget(memory, "content") == b"spoilt"


async def test_the_query_engine_reads_beyond_the_key_patterns(as_server: Client) -> None:
    """Why nothing else may live in this Redis; when this fails, the Query Engine has learned better: say so."""
    with pytest.raises(redis_errors.NoPermissionError):
        await as_server.hget("other:1", "text")
    create = "FT.CREATE rm:spy ON HASH PREFIX 1 other: SCHEMA text TEXT"
    await as_server.execute_command(*create.split())

    async def found() -> bool:
        return b"payroll" in str(await as_server.execute_command("FT.SEARCH", "rm:spy", "payroll")).encode()

    await wait_until(found)


async def test_the_start_up_checks_ask_for_nothing_that_is_refused(guarded: RedisServer) -> None:
    async with connect(guarded.url) as almighty:
        for user in USERS:
            await almighty.acl_log_reset()
            async with connect(guarded.url_of(user)) as client:
                await check_server(client)
            assert await denials(almighty) == set()


async def test_the_file_as_it_is_shipped_lets_nobody_in(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.acl_file.write_text(resource("redis/users.acl").read_text())
    with pytest.raises(AssertionError):
        redis.start()


async def test_without_a_user_nothing_can_be_done(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.acl_file.write_text(acl_text())
    redis.start()
    try:
        async with connect(redis.url) as nobody:
            with pytest.raises(StoreUnavailable, match="user or password"):
                await check_server(nobody)
        async with connect(redis.url_of(SERVER).replace("password-of", "guess-at")) as stranger:
            with pytest.raises(StoreUnavailable, match="user or password"):
                await check_server(stranger)
        async with connect(redis.url_of(SERVER)) as known:
            await check_server(known)
    finally:
        redis.kill()


def test_every_command_is_named() -> None:
    words = resource("redis/users.acl").read_text().split()
    assert not [word for word in words if word.startswith(("+@", "&", "~*", "nopass", ">", "all"))]
    assert words.count("-@all") == words.count("resetchannels") == words.count("user")


async def allowed(almighty: Client, user: str, commands: Sequence[str]) -> list[str]:
    """Give those of some commands that a user would not be refused."""
    verdicts = [await almighty.execute_command("ACL", "DRYRUN", user, *command.split()) for command in commands]
    return [command for command, verdict in zip(commands, verdicts, strict=True) if verdict == b"OK"]
