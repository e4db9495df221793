"""`redis-memory dashboard`: prints a link to the operator's view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from memory_core.errors import InvalidArgument, StoreUnavailable, echo
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
        page = await (_checked(url) if url else _local(settings, port))
        key = await lazy.operator_login.admit_once(backend, settings.namespace)
        return f"{page}/#operator={key}"

    address = console.with_backend(admit)
    console.show({"url": address}, address)


async def _local(settings: Settings, port: int | None) -> str:
    """Return the URL of the newest server on the data directory, or of the one on a port.

    Raises:
        StoreUnavailable: there is none, or it does not answer.
    """
    servers = lazy.running.find_servers(settings)
    if port is None and not servers:
        raise lazy.running.no_server(settings)
    announced = lazy.running.announced_servers(settings)
    url = next((one for one in announced if urlsplit(one).port == port), None)
    if port is None:
        url = servers[0]
    elif url is None and not lazy.running.may_be_embedded(settings):
        url = lazy.running.configured_url(settings, port)
    if url is None or not await lazy.machine.livez(url):
        hint = f"its servers are {', '.join(announced)}" if announced else "start one with redis-memory serve"
        raise StoreUnavailable(f"no server of this memory answers at {url or f'port {port}'}", hint=hint)
    return url


async def _checked(url: str) -> str:
    """Return a URL without its last slash.

    Raises:
        InvalidArgument: it is not a URL. StoreUnavailable: it is of this machine, and no server answers.
    """
    page = url.rstrip("/")
    try:
        host = urlsplit(page).hostname if page.startswith(("http://", "https://")) else None
        answers = await lazy.machine.livez(page) if host else None
    except ValueError:
        host = answers = None
    if not host:
        raise InvalidArgument(f"--url {echo(url)} is not a URL", hint="such as https://memory.example")
    if answers:
        return page
    if lazy.running.is_loopback(host):
        raise StoreUnavailable(f"no server answers at {page}", hint="start one with redis-memory serve")
    lazy.printing.line(f"From this machine, no server answers at {page}.", err=True)
    return page
