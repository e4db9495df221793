"""What the commands of `redis-memory` share: their options, and how one runs on Redis and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from memory_core.errors import MemoryServiceError

if TYPE_CHECKING:
    from memory_core.settings import Settings
    from memory_server.backend import Backend
    from memory_server.service import Service

T = TypeVar("T")
Config = Annotated[Path | None, typer.Option(help="JSON file with settings.")]
DataDir = Annotated[Path | None, typer.Option(help="Where the embedded Redis keeps its data.")]
Namespace = Annotated[str | None, typer.Option(help="Team or project; the settings' own if left out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


def load_settings(config: Path | None, data_dir: Path | None, namespace: str | None) -> Settings:
    """Read the settings; options that are given win."""
    from memory_core.settings import Settings

    return Settings.load(config, data_dir=data_dir, namespace=namespace)


def with_backend(settings: Settings, action: Callable[[Backend], Awaitable[T]]) -> T:
    """Run an action on Redis."""

    async def run() -> T:
        from memory_server.backend import Backend

        backend = Backend(settings)
        return await _connected(backend, lambda: action(backend))

    return asyncio.run(run())


def with_service(settings: Settings, action: Callable[[Service], Awaitable[T]]) -> T:
    """Run an action on Redis that needs use cases, and none of a server's background work."""

    async def run() -> T:
        from memory_server.service import Service

        service = Service(settings)

        async def act() -> T:
            result = await action(service)
            await service.drained()
            return result

        return await _connected(service.backend, act)

    return asyncio.run(run())


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
