"""When Redis fails during a call, the answer never claims that nothing changed although something did."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.embedder_fixtures import RedisServer
from support.redis_users import SERVER, denials
from support.stack import Stack
from support.task_helpers import joined, submit

from memory_core.errors import OutcomeUnknown, StoreUnavailable
from memory_core.records.keys import Keys
from memory_core.settings.settings import Settings
from memory_server.contract.task_arguments import PendingArguments
from memory_server.engine import redis_backend as backends
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.tasks import leases


async def test_claim_with_unreadable_tasks_reports_outcome_unknown(stack: Stack, namespace: str) -> None:
    async with joined(stack.server, namespace, "ada") as ada:
        await submit(ada)
    service = await stack.server.runtime.service()
    assert not await denials(stack.client)
    await stack.client.execute_command("ACL", "SETUSER", SERVER, "-lrange")
    try:
        with pytest.raises(OutcomeUnknown):
            await leases.get_pending_tasks(
                service, RequestContext(Caller(namespace, "ada")), PendingArguments(with_memories=0)
            )
    finally:
        await stack.client.execute_command("ACL", "SETUSER", SERVER, "+lrange")
        assert {denied for _, _, denied in await denials(stack.client)} == {"lrange"}
        await stack.client.acl_log_reset()
    assert await stack.client.scard(Keys(namespace).held("ada")) == 1


async def test_interrupted_write_stays_outcome_unknown_after_failed_retries(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "RESTART_WAIT_SECONDS", 1.0)
    redis, keys = RedisServer(tmp_path_factory.mktemp("gone")), Keys("gone")
    redis.start()
    settings = Settings.load(redis_url=redis.url, redis={"timeout_seconds": 0.2})
    async with backends.Backend(settings).running() as backend:
        client = await backend.client()
        arguments: dict[str, Any] = {"prefix": keys.prefix, "keep": 1}
        await backend.write("rm1_task_sweep", [keys.leases], repeatable=True, **arguments)
        await client.execute_command("CLIENT", "PAUSE", 10_000, "WRITE")
        pending = asyncio.create_task(backend.write("rm1_task_sweep", [keys.leases], repeatable=True, **arguments))
        await asyncio.wait([pending], timeout=0.3)
        redis.kill()
        with pytest.raises(OutcomeUnknown):
            await pending
        with pytest.raises(StoreUnavailable):
            await backend.write("rm1_task_sweep", [keys.leases], repeatable=True, **arguments)
