"""The users of redis/users.acl have exactly the permissions that the product needs.

The shared stack of all tests runs under these users; its fixture checks for denials at the end.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from redis import exceptions as redis_errors
from support.embedder_fixtures import RedisServer, Team, wait_until
from support.redis_users import MIGRATE, SERVER, SIDECAR, VIEW, acl_text, denials
from support.stack import Agent, Server, Stack
from support.task_helpers import complete, fail, joined, lease, submit

from memory_core.errors import StoreRefused, StoreUnavailable
from memory_core.package_data import resource
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.store.connection import check_server, connect, store_errors
from memory_core.store.functions import call, load_library
from memory_server.operations.sweeper import sweep

USERS = (SERVER, SIDECAR, MIGRATE, VIEW)
FORBIDDEN_TO_ALL = (
    "FLUSHALL|FLUSHDB|KEYS rm:*|SHUTDOWN NOSAVE|REPLICAOF NO ONE|MONITOR|RANDOMKEY|WAIT 0 1|SYNC|SWAPDB 0 1|"
    "CONFIG SET dir /tmp|CONFIG GET requirepass|CONFIG REWRITE|DEBUG SLEEP 0|MODULE LOAD /tmp/x.so|"
    "EVAL return 0|EVALSHA 0 0|SCRIPT LOAD return|FUNCTION FLUSH|FUNCTION DELETE rm1|FUNCTION KILL|"
    "ACL WHOAMI|ACL LIST|ACL SETUSER x on|CLIENT KILL ID 1|CLIENT LIST|CLIENT PAUSE 1|FT.CONFIG SET TIMEOUT 1|"
    "PUBLISH rm:x 1|SUBSCRIBE rm:x|GET other:1|SET other:1 x|HGETALL other:1|DEL other:1|MIGRATE h 1 k 0 1|DUMP rm:x"
).split("|")
SERVER_ONLY = (
    "FT.SEARCH rm:{team}:idx:memory *|FT.CREATE x SCHEMA y TEXT|FT.DROPINDEX x|FUNCTION LOAD x|FUNCTION LIST|"
    "SADD rm:namespaces x|XADD rm:bell:{0} * a b|HSET rm:{team}:meta model x|HSET rm:{team}:grant:x a b|"
    "HSET rm:{team}:task:x a b|HSET rm:{team}:agent:alice id x|HSET rm:{team}:owner:x agent mallory|"
    "XADD rm:{team}:audit * a b|HGETALL rm:{team}:agent:alice|HGETALL rm:{team}:emb:vec:alice|SET rm:sweeper x|"
    "FCALL rm1_owner 2 rm:{team}:agent:alice rm:{team}:owner:x x"
).split("|")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def acl_redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[RedisServer]:
    """A Redis with one namespace and a foreign hash, where tests may provoke denials."""
    redis = RedisServer(tmp_path_factory.mktemp("guarded"))
    redis.start()
    try:
        async with connect(redis.url) as admin:
            await Team(admin, "fake", 16).open()
            await admin.hset("other:1", "text", "payroll")
        yield redis
    finally:
        redis.kill()


@pytest_asyncio.fixture(loop_scope="session")
async def as_server(acl_redis: RedisServer) -> AsyncGenerator[Client]:
    """Redis under the server's user."""
    async with connect(acl_redis.url_of(SERVER)) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def as_sidecar(acl_redis: RedisServer) -> AsyncGenerator[Client]:
    """Redis under the sidecar's user."""
    async with connect(acl_redis.url_of(SIDECAR)) as client:
        yield client


async def test_whole_product_runs_without_acl_denials(
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
async def test_dangerous_commands_are_refused(acl_redis: RedisServer, user: str) -> None:
    async with connect(acl_redis.url) as admin:
        assert await allowed(admin, "default", FORBIDDEN_TO_ALL) == list(FORBIDDEN_TO_ALL)
        assert await allowed(admin, user, FORBIDDEN_TO_ALL) == []


async def test_sidecar_user_has_only_vector_permissions(acl_redis: RedisServer) -> None:
    async with connect(acl_redis.url) as admin:
        assert await allowed(admin, SIDECAR, SERVER_ONLY) == []


async def test_view_user_reads_and_changes_nothing(acl_redis: RedisServer) -> None:
    reads = ["HGETALL rm:{team}:agent:alice", "XRANGE rm:{team}:audit - +", "TYPE rm:x", "SCAN 0"]
    changes = ["SET rm:x 1", "DEL rm:x", "HSET rm:x a b", "XADD rm:x * a b", "FCALL rm1_owner 0", "FUNCTION LOAD x"]
    changes += ["FT.DROPINDEX x", "FT.CREATE x SCHEMA y TEXT", "EXPIRE rm:x 1", "RENAME rm:x rm:y", "BGREWRITEAOF"]
    async with connect(acl_redis.url) as admin:
        assert await allowed(admin, VIEW, reads) == reads
        assert await allowed(admin, VIEW, changes) == []


async def test_migration_user_cannot_run_functions_loaded_by_the_server(acl_redis: RedisServer) -> None:
    async with connect(acl_redis.url) as admin:
        assert await allowed(admin, MIGRATE, ["FCALL rm1_owner 0", "FUNCTION LOAD x", "CLIENT UNBLOCK 1"]) == []
    async with connect(acl_redis.url_of(MIGRATE)) as client:
        await check_server(client)
        assert await load_library(client) is False


async def test_function_runs_with_its_callers_permissions(acl_redis: RedisServer, as_sidecar: Client) -> None:
    code = (
        "#!lua name=sly\nredis.register_function('sly', "
        "function(keys, args) return redis.call('SET', 'rm:sweeper', 'x') end)"
    )
    async with connect(acl_redis.url) as admin:
        await admin.function_load(code, replace=True)
        assert await admin.execute_command("FCALL", "sly", 0) == b"OK"
        with pytest.raises(redis_errors.ResponseError, match="ACL failure in script"):
            await as_sidecar.execute_command("FCALL", "sly", 0)


async def test_command_that_an_older_acl_file_lacks_is_named(acl_redis: RedisServer) -> None:
    keys = Keys("team")
    async with connect(acl_redis.url) as admin, connect(acl_redis.url_of(SERVER)) as server:
        await admin.execute_command("ACL", "SETUSER", SERVER, "-zcard")
        try:
            with pytest.raises(StoreRefused, match="zcard"):
                async with store_errors():
                    await call(server, "rm1_tidy", [keys.leases], prefix=keys.prefix)
        finally:
            await admin.execute_command("ACL", "SETUSER", SERVER, "+zcard")


async def test_compromised_sidecar_can_read_and_damage_every_namespace(as_sidecar: Client) -> None:
    """ACLs cannot separate a sidecar's normal work from misuse; see docs/decisions/0011."""
    memory = Keys("elsewhere").memory("x")
    await as_sidecar.hset(memory, "content", "spoilt")
    assert await as_sidecar.hget(memory, "content") == b"spoilt"


async def test_query_engine_reads_beyond_the_key_patterns(as_server: Client) -> None:
    """This is why the Redis must hold no other data. If it fails, the Query Engine now checks keys: update the docs."""
    with pytest.raises(redis_errors.NoPermissionError):
        await as_server.hget("other:1", "text")
    create = "FT.CREATE rm:spy ON HASH PREFIX 1 other: SCHEMA text TEXT"
    await as_server.execute_command(*create.split())

    async def found() -> bool:
        return b"payroll" in str(await as_server.execute_command("FT.SEARCH", "rm:spy", "payroll")).encode()

    await wait_until(found)


async def test_startup_checks_need_no_denied_command(acl_redis: RedisServer) -> None:
    async with connect(acl_redis.url) as admin:
        for user in (SERVER, SIDECAR, MIGRATE):
            await admin.acl_log_reset()
            async with connect(acl_redis.url_of(user)) as client:
                await check_server(client)
            assert await denials(admin) == set()


async def test_shipped_acl_file_lets_no_user_in(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.acl_file.write_text(resource("redis/users.acl").read_text())
    with pytest.raises(AssertionError):
        redis.start()


async def test_default_user_can_do_nothing(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.acl_file.write_text(acl_text())
    redis.start()
    try:
        async with connect(redis.url) as client:
            with pytest.raises(StoreUnavailable, match="user or password"):
                await check_server(client)
        async with connect(redis.url_of(SERVER).replace("password-of", "guess-at")) as stranger:
            with pytest.raises(StoreUnavailable, match="user or password"):
                await check_server(stranger)
        async with connect(redis.url_of(SERVER)) as known:
            await check_server(known)
    finally:
        redis.kill()


async def test_restart_of_redis_keeps_what_functions_wrote(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.acl_file.write_text(acl_text())
    redis.start()
    try:
        async with connect(redis.url_of(SERVER)) as server:
            team = await Team(server, "fake", 16).open()
            memory = await team.store("kept over a restart", ring=False)
            before = await server.hgetall(team.names.memory(memory))
            # One read, several commands in the append-only file: the consumer, the delivery and the position.
            async with connect(redis.url_of(SIDECAR)) as sidecar:
                stream = team.jobs
                await sidecar.xgroup_create(stream, "again", id="0")
                assert await sidecar.xreadgroup("again", "one", {stream: ">"})
        redis.kill()
        redis.start()
        async with connect(redis.url_of(SERVER)) as server, connect(redis.url_of(SIDECAR)) as sidecar:
            assert before
            assert await server.hgetall(team.names.memory(memory)) == before
            assert await server.hget(team.names.agent("alice"), "owners") == team.owner.encode()
            assert (await sidecar.xpending(stream, "again"))["pending"] == 1
    finally:
        redis.kill()


def test_every_command_is_named() -> None:
    default, *users = resource("redis/users.acl").read_text().splitlines()
    words = " ".join(users).split()
    assert not [word for word in words if word.startswith(("+@", "&", "~*", "nopass", ">", "all"))]
    assert words.count("-@all") == words.count("resetchannels") == words.count("user") == len(users)
    assert default.split()[:4] == ["user", "default", "off", "resetpass"]


async def allowed(admin: Client, user: str, commands: Sequence[str]) -> list[str]:
    """Return the commands that a user may run."""
    verdicts = [await admin.execute_command("ACL", "DRYRUN", user, *command.split()) for command in commands]
    return [command for command, verdict in zip(commands, verdicts, strict=True) if verdict == b"OK"]
