"""The options that commands share, and how a command runs on Redis, prints its answer and exits."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, wraps
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from memory_core.errors import EmbeddingUnavailable, MemoryServiceError, OutcomeUnknown, StoreUnavailable
from memory_core.records.names import canonical_name, check_name
from memory_server.cli import lazy
from memory_server.cli.effects import EFFECTS, Effect

if TYPE_CHECKING:
    from memory_core.redis_client import Client
    from memory_core.settings.settings import Settings
    from memory_server.contract.answer import Answer
    from memory_server.engine.redis_backend import Backend
    from memory_server.engine.request_context import Caller, RequestContext
    from memory_server.service import Service

    A = TypeVar("A", bound=Answer)

T = TypeVar("T")

OK, CHECK_FAILED, USAGE, TRY_AGAIN, EXIT_CONFIG = 0, 1, 2, 75, 78
EXIT_CODES = {
    OK: "Success; a check found no problem.",
    CHECK_FAILED: "A check found a problem, or `status` found no Redis.",
    USAGE: "Wrong command line: an unknown command, option or value.",
    TRY_AGAIN: "Redis or the sidecars do not answer. The same command may succeed later.",
    EXIT_CONFIG: "Refused. stderr begins with the error code (`not_found`, `invalid_argument`, `unsafe_start`, …).",
}
"""75 and 78 are EX_TEMPFAIL and EX_CONFIG of sysexits."""

COMMON_OPTIONS = {
    "namespace": (str | None, None, typer.Option(help="Team or project; from the settings if omitted.")),
    "as_json": (bool, False, typer.Option("--json", help="Answer in JSON.")),
    "config": (Path | None, None, typer.Option(help="JSON file with settings.")),
    "data_dir": (Path | None, None, typer.Option(help="Data directory of the embedded Redis.")),
}


def group(name: str, help_text: str) -> typer.Typer:
    """Make a group of commands, such as `redis-memory tasks`."""
    return typer.Typer(name=name, no_args_is_help=True, pretty_exceptions_enable=False, help=help_text)


def common_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the named common options, by default all. It receives a `Console` instead of them."""
    common = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
        for name, (kind, default, option) in COMMON_OPTIONS.items()
        if name in names or not names
    ]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        context = Parameter("typer_context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = [*list(signature.parameters.values())[1:], *common, context]

        @wraps(function)
        def command(**arguments: Any) -> None:
            options = {one.name: arguments.pop(one.name) for one in common}
            console = Console(**options, effect=_effect(arguments.pop("typer_context")), scoped="namespace" in options)
            function(console, **arguments)

        command.__annotations__ = {one.name: one.annotation for one in parameters}
        vars(command)["__signature__"] = signature.replace(parameters=parameters)
        return command

    return decorate


class Console:
    """One run of a command: its common options, its access to Redis and its output."""

    def __init__(
        self,
        *,
        namespace: str | None = None,
        as_json: bool = False,
        config: Path | None = None,
        data_dir: Path | None = None,
        effect: Effect = Effect.CREATE,
        scoped: bool = False,
    ) -> None:
        self.effect = effect
        self._is_scoped = scoped
        self.namespace_option = namespace
        self.as_json = as_json
        self.config = config
        self.data_dir = data_dir

    @cached_property
    def settings(self) -> Settings:
        """The settings; options win over them."""
        return lazy.settings.Settings.load(self.config, data_dir=self.data_dir, namespace=self.namespace_option)

    @property
    def namespace(self) -> str:
        return self.settings.namespace

    def only_reads(self) -> None:
        """Make this run of the command start and create nothing, as with an option like `--dry-run`."""
        self.effect = Effect.READ

    def as_operator(self, op: str, run: Callable[[Service, RequestContext], Awaitable[A]], *ids: str) -> A:
        """Run a use case with the operator's permission: the console holds the password of Redis."""
        return self._audited(_caller(self.namespace, lazy.quarantine.CONSOLE, admin=True, oversees=True), op, run, ids)

    def as_agent(self, agent: str, op: str, run: Callable[[Service, RequestContext], Awaitable[A]], *ids: str) -> A:
        """Run a use case with an agent's permission. Raises InvalidArgument unless `agent` is a valid name."""
        return self._audited(acting_as(self.namespace, self.agent_name(agent)), op, run, ids)

    def agent_name(self, given: str) -> str:
        """Return an agent's name as the server reads it. Raises InvalidArgument for one that no agent can have."""
        return canonical_name(given, "agent") if self.settings.auth.mode == "off" else check_name(given, "agent")

    def _audited(
        self, caller: Caller, op: str, run: Callable[[Service, RequestContext], Awaitable[A]], ids: Sequence[str]
    ) -> A:
        """Run a use case and write its audit entry, however it ends, like a call of a tool."""
        call = lazy.audit_calls.AuditedCall(op, lazy.audit_calls.named_ids({"memory_ids": list(ids)}))

        async def act(service: Service) -> A:
            try:
                answer = await run(service, lazy.request_context.RequestContext(caller, call))
                call.succeeded(answer.shown(), answer.shown_besides())
                return answer
            except MemoryServiceError as error:
                call.outcome = error.code
                raise
            finally:
                entry = call.entry(caller.agent, caller.origin)
                if entry is not None:
                    service.auditor.recorder.add(caller.namespace, entry | ({"by": caller.by} if caller.by else {}))

        return self.with_server(act)

    def with_backend(self, action: Callable[[Backend], Awaitable[T]]) -> T:
        """Run an action that needs Redis only."""

        async def run() -> T:
            await self._check_store()
            backend = lazy.redis_backend.Backend(self.settings)
            return await self._connected(backend, lambda: action(backend))

        return asyncio.run(run())

    def with_service(self, action: Callable[[Service], Awaitable[T]]) -> T:
        """Run an action that needs use cases, and wait for the deferred work that it leaves."""

        async def act(service: Service) -> T:
            result = await action(service)
            await service.drained()
            return result

        return self._run(act)

    def with_server(self, action: Callable[[Service], Awaitable[T]]) -> T:
        """Run an action that needs a server's background work: embeddings on request, and the audit written at exit."""

        async def act(service: Service) -> T:
            async with service.auditor.running(), service.embeddings.running():
                return await action(service)

        return self._run(act)

    def _run(self, action: Callable[[Service], Awaitable[T]]) -> T:
        async def run() -> T:
            await self._check_store()
            service = lazy.service.Service(self.settings)
            return await self._connected(service.backend, lambda: action(service))

        return asyncio.run(run())

    def on_redis(self, action: Callable[[Client], Awaitable[T]]) -> T:
        """Run an action that only reads from Redis: a connection is enough."""

        async def run() -> T:
            async with lazy.running.connected(self.settings) as client:
                if self._is_scoped:
                    await lazy.running.check_namespace(client, self.namespace)
                return await action(client)

        return asyncio.run(run())

    async def _check_store(self) -> None:
        """Refuse to create or start what the command only reads, before anything is written to a Redis."""
        await _check_redis(self.settings)
        if self.effect is Effect.READ:
            async with lazy.running.connected(self.settings) as client:
                if self._is_scoped:
                    await lazy.running.check_namespace(client, self.namespace)
        elif self.effect is Effect.CHANGE and lazy.connection.redis_url(self.settings) is None:
            lazy.running.existing_memory(self.settings)

    async def _connected(self, backend: Backend, action: Callable[[], Awaitable[T]]) -> T:
        """Run an action once Redis answers. Raises its refusal outside the task group, which would wrap it."""
        refused: MemoryServiceError
        async with backend.running():
            try:
                client = await backend.client()
                if self.effect is Effect.CHANGE and self._is_scoped:
                    await lazy.running.check_namespace(client, self.namespace)
                return await action()
            except MemoryServiceError as error:
                refused = error
        raise refused

    def progress(self) -> AbstractContextManager[Callable[[str, int, int], None]]:
        """Show progress on stderr, unless the answer is JSON; see `printing.progress`."""
        return lazy.printing.progress(self.as_json)

    def show(self, value: object, text: str | Callable[[], object]) -> None:
        """Print a value as JSON, or else a text, or else let `text` print."""
        if self.as_json:
            lazy.printing.emit(value)
        elif callable(text):
            text()
        else:
            lazy.printing.line(str(text))

    def show_answer(self, answer: Answer, text: str | Callable[[], object]) -> None:
        """Print a use case's answer as JSON without nulls, or else as text."""
        self.show(answer.model_dump(mode="json", exclude_none=True), text)


def exit_code(error: MemoryServiceError) -> int:
    is_transient = isinstance(error, StoreUnavailable | OutcomeUnknown | EmbeddingUnavailable)
    return TRY_AGAIN if is_transient else EXIT_CONFIG


def acting_as(namespace: str, agent: str) -> Caller:
    """Return a caller with an agent's permission and no more. Raises InvalidArgument for an invalid name."""
    return _caller(namespace, check_name(agent, "agent"), by=lazy.quarantine.CONSOLE)


def _caller(namespace: str, agent: str, **options: Any) -> Caller:
    origin = f"{lazy.quarantine.CONSOLE} {os.getpid()}"
    return lazy.request_context.Caller(namespace, agent, origin=origin, **options)


def _effect(context: typer.Context) -> Effect:
    """Return the effect of the command that runs, by its words after the program's name."""
    words: list[str] = []
    at: Any = context
    while at.parent is not None:
        words.insert(0, at.info_name or "")
        at = at.parent
    return EFFECTS[tuple(words)]


async def _check_redis(settings: Settings) -> None:
    """Fail at once if the configured Redis cannot be used; a server would wait for it to start."""
    url = lazy.connection.redis_url(settings)
    if url is None or settings.uses_config_default_redis:
        return
    client = lazy.connection.connect(url)
    try:
        await lazy.connection.check_server(client)
    finally:
        await client.aclose()
