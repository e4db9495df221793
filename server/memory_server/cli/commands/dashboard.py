"""`redis-memory dashboard`: a way into the operator's view, for whoever may reach Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memory_server.cli.console import AsJson, Config, DataDir, Namespace, load_settings, with_backend

if TYPE_CHECKING:
    from memory_server.engine.backend import Backend


def dashboard(
    url: Annotated[str | None, typer.Option(help="Where the server is; http://127.0.0.1:PORT/ if left out.")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port of the server on this machine.")] = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Print the address of the operator's view. It works once, within an hour."""
    import json

    settings = load_settings(config, data_dir, namespace)
    page = url or f"{'https' if settings.tls_cert else 'http'}://127.0.0.1:{port or settings.port}/"

    async def make(backend: Backend) -> str:
        from memory_server.access.operator_login import admit_once

        return await admit_once(backend, settings.namespace)

    address = f"{page.rstrip('/')}/#operator={with_backend(settings, make)}"
    typer.echo(json.dumps({"url": address}) if as_json else address)
