"""What the commands of `redis-memory` share: their options, as whom they act, how one runs on Redis and ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from memory_core.errors import EmbeddingUnavailable, MemoryServiceError, OutcomeUnknown, StoreUnavailable

if TYPE_CHECKING:
    from memory_core.settings.settings import Settings
    from memory_server.contract.answer import Answer
    from memory_server.engine.backend import Backend
    from memory_server.engine.request import Caller, RequestContext
    from memory_server.service import Service

    A = TypeVar("A", bound=Answer)

T = TypeVar("T")
Config = Annotated[Path | None, typer.Option(help="JSON file with settings.")]
DataDir = Annotated[Path | None, typer.Option(help="Where the embedded Redis keeps its data.")]
Namespace = Annotated[str | None, typer.Option(help="Team or project; the settings' own if left out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]

OK, TO_MEND, USAGE, TRY_AGAIN, EXIT_CONFIG = 0, 1, 2, 75, 78
EXIT_CODES = {
    OK: "done; a check found nothing to mend",
    TO_MEND: "a check found something to mend, or nothing runs that `status` could tell of",
    USAGE: "the command line is wrong: an unknown command, option or value",
    TRY_AGAIN: "Redis or the sidecars do not answer; the same command may succeed later",
    EXIT_CONFIG: "refused: the first word on stderr says why (`not_found`, `invalid_argument`, `unsafe_start`, …)",
}
"""What the exit codes mean. 75 and 78 are EX_TEMPFAIL and EX_CONFIG of sysexits."""


def exit_code(error: MemoryServiceError) -> int:
    """Give the exit code of a refusal."""
    passing = isinstance(error, StoreUnavailable | OutcomeUnknown | EmbeddingUnavailable)
    return TRY_AGAIN if passing else EXIT_CONFIG


def load_settings(config: Path | None, data_dir: Path | None, namespace: str | None = None) -> Settings:
    """Read the settings; options that are given win."""
    from memory_core.settings.settings import Settings

    return Settings.load(config, data_dir=data_dir, namespace=namespace)


def operator(namespace: str) -> Caller:
    """Give the caller at the console. It has the password of Redis, so it acts for all agents."""
    from memory_server.engine.request import Caller
    from memory_server.operations.quarantine import CONSOLE

    return Caller(namespace, CONSOLE, admin=True, origin=_origin(CONSOLE))


def acting_as(namespace: str, agent: str) -> Caller:
    """Give an agent with no more than its own permission, for whom the console acts.

    Raises:
        InvalidArgument: the name is none.
    """
    from memory_core.records.names import check_name
    from memory_server.engine.request import Caller
    from memory_server.operations.quarantine import CONSOLE

    return Caller(namespace, check_name(agent, "agent"), by=CONSOLE, origin=_origin(CONSOLE))


def with_backend(settings: Settings, action: Callable[[Backend], Awaitable[T]]) -> T:
    """Run an action on Redis."""

    async def run() -> T:
        from memory_server.engine.backend import Backend

        await _check_named(settings)
        backend = Backend(settings)
        return await _connected(backend, lambda: action(backend))

    return asyncio.run(run())


def with_service(settings: Settings, action: Callable[[Service], Awaitable[T]]) -> T:
    """Run an action on Redis that needs use cases, and none of a server's background work."""

    async def run() -> T:
        from memory_server.service import Service

        await _check_named(settings)
        service = Service(settings)

        async def act() -> T:
            result = await action(service)
            await service.drained()
            return result

        return await _connected(service.backend, act)

    return asyncio.run(run())


def with_serving(settings: Settings, action: Callable[[Service], Awaitable[T]]) -> T:
    """Run an action that needs what a server has: vectors on request, and the audit written and sealed at the end."""

    async def run() -> T:
        from memory_server.service import Service

        await _check_named(settings)
        service = Service(settings)

        async def serve() -> T:
            async with service.auditor.running(), service.embeddings.running():
                return await action(service)

        return await _connected(service.backend, serve)

    return asyncio.run(run())


def carry_out(
    settings: Settings,
    caller: Caller,
    op: str,
    use_case: Callable[[Service, RequestContext], Awaitable[A]],
    *,
    ids: Sequence[str] = (),
) -> A:
    """Run a use case for the console as a tool is run: it writes its audit entry however it ends."""
    return with_serving(settings, lambda service: _audited(service, caller, op, ids, use_case))


async def _audited(
    service: Service,
    caller: Caller,
    op: str,
    ids: Sequence[str],
    use_case: Callable[[Service, RequestContext], Awaitable[A]],
) -> A:
    from memory_server.engine.audited_calls import AuditedCall, named_ids
    from memory_server.engine.request import RequestContext

    call = AuditedCall(op, named_ids({"memory_ids": list(ids)}))
    try:
        answer = await use_case(service, RequestContext(caller, call=call))
        call.succeeded(answer.shown(), answer.shown_besides())
        return answer
    except MemoryServiceError as error:
        call.outcome = error.code
        raise
    finally:
        entry = call.entry(caller.agent, caller.origin)
        if entry is not None:
            service.auditor.recorder.add(caller.namespace, entry | ({"by": caller.by} if caller.by else {}))


async def _check_named(settings: Settings) -> None:
    """Tell at once that a Redis that the settings name cannot be used: a server would wait for it to come up.

    Raises:
        StoreUnavailable, UnsafeStart: it cannot.
    """
    from memory_core.store.connection import check_server, connect, redis_url

    url = redis_url(settings)
    if url is None or settings.uses_config_default_redis:
        return
    client = connect(url)
    try:
        await check_server(client)
    finally:
        await client.aclose()


async def _connected(backend: Backend, action: Callable[[], Awaitable[T]]) -> T:
    """Run an action once Redis is there; its refusal is raised outside the task group, which would wrap it."""
    refused: MemoryServiceError
    async with backend.running():
        try:
            await backend.client()
            return await action()
        except MemoryServiceError as error:
            refused = error
    raise refused


def _origin(who: str) -> str:
    return f"{who} {os.getpid()}"
