"""`redis-memory dashboard`: prints a link to the operator's view."""

from __future__ import annotations

from typing import Annotated

import typer

from memory_server.cli import lazy
from memory_server.cli.console import Console, common_options


@common_options()
def dashboard(
    console: Console,
    url: Annotated[str | None, typer.Option(help="URL of the server; http://127.0.0.1:PORT/ if omitted.")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port of the server on this machine.")] = None,
) -> None:
    """Print a link to the operator's view. It works once, within an hour."""
    settings = console.settings
    page = url or f"{'https' if settings.tls_cert else 'http'}://127.0.0.1:{port or settings.port}/"
    key = console.with_backend(lambda backend: lazy.operator_login.admit_once(backend, settings.namespace))
    address = f"{page.rstrip('/')}/#operator={key}"
    console.show({"url": address}, address)
