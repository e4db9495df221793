"""`redis-memory dashboard`: prints a link to the operator's view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memory_core.errors import StoreUnavailable
from memory_server.cli import lazy
from memory_server.cli.console import Console, common_options

if TYPE_CHECKING:
    from memory_core.settings.settings import Settings
    from memory_server.engine.redis_backend import Backend


@common_options()
def dashboard(
    console: Console,
    url: Annotated[
        str | None, typer.Option(help="URL of the server; the one on the data directory if omitted.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port of the server on this machine.")] = None,
) -> None:
    """Print a link to the operator's view. It works once, within an hour."""
    settings = console.settings

    async def admit(backend: Backend) -> str:
        page = url or (lazy.running.configured_url(settings, port) if port else _newest(settings))
        key = await lazy.operator_login.admit_once(backend, settings.namespace)
        return f"{page.rstrip('/')}/#operator={key}"

    address = console.with_backend(admit)
    console.show({"url": address}, address)


def _newest(settings: Settings) -> str:
    """Return the URL of the newest server on the data directory. Raises StoreUnavailable without one."""
    servers = lazy.running.find_servers(settings)
    if not servers:
        raise lazy.running.no_server(settings)
    return servers[0]
