"""`redis-memory`: serve, stop and check the memory from a shell."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Annotated, Any

import typer

from memory_core.errors import MemoryServiceError
from memory_server.cli_agents import agents
from memory_server.cli_audit import audit
from memory_server.cli_dashboard import dashboard
from memory_server.cli_keys import keys
from memory_server.cli_trust import integrity, purge, quarantine
from memory_server.console import AsJson, Config, DataDir

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits: the deployment is configured wrongly."""

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(agents, name="agents")
app.add_typer(keys, name="keys")
app.add_typer(quarantine, name="quarantine")
app.add_typer(integrity, name="integrity")
app.command()(purge)
app.command()(dashboard)
app.add_typer(audit, name="audit")


@app.command()
def serve(
    stdio: Annotated[bool, typer.Option("--stdio", help="Serve one client over stdin and stdout.")] = False,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 picks a free one.")] = None,
    host: Annotated[str | None, typer.Option(help="HTTP address; loopback only while authentication is off.")] = None,
    data_dir: DataDir = None,
    namespace: Annotated[str | None, typer.Option(help="Team or project whose memory this is.")] = None,
    agent: Annotated[str | None, typer.Option(help="Name of the agent that connects over stdio.")] = None,
    config: Config = None,
) -> None:
    """Serve MCP."""
    from memory_core.settings import Settings

    settings = Settings.load(config, port=port, host=host, data_dir=data_dir, namespace=namespace, agent=agent)
    logging.basicConfig(level=settings.log_level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    _run(_serve(settings, stdio))


@app.command()
def stop(data_dir: DataDir = None) -> None:
    """Stop the embedded Redis and its sidecar."""
    from memory_server.local.stop import stop as stop_local

    typer.echo("stopped" if stop_local(data_dir) else "nothing was running")


@app.command()
def doctor(
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Check Redis, the index and the sidecars, and say how to mend what is wrong."""
    from memory_core.settings import Settings
    from memory_server.doctor import examine

    report = _run(examine(Settings.load(config, data_dir=data_dir)))
    if as_json:
        typer.echo(json.dumps(report.model_dump(mode="json"), indent=2))
    else:
        typer.echo(report.text())
    if not report.healthy:
        raise typer.Exit(1)


@app.command()
def settings(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Write the reference, docs/settings.md.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Show every setting: its value, where that is from, its default and its environment variable."""
    from memory_core.settings import Settings
    from memory_server import settings_reference as reference

    if as_markdown:
        typer.echo(reference.markdown(), nl=False)
        return
    found = reference.describe(Settings.load(config), config)
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in found], indent=2))
    else:
        typer.echo(reference.table(found))


def main() -> None:
    """Run the command line; refusals are one line and an exit code, never a trace."""
    try:
        app()
    except MemoryServiceError as error:
        typer.echo(f"{error.code}: {error.message}" + (f" ({error.hint})" if error.hint else ""), err=True)
        sys.exit(EXIT_CONFIG)


async def _serve(settings: Any, stdio: bool) -> None:
    if stdio:
        from memory_server.transport.stdio import serve_stdio

        await serve_stdio(settings)
    else:
        from memory_server.transport.http import serve_http

        await serve_http(settings)


def _run(coroutine: Any) -> Any:
    if sys.platform == "win32":
        return asyncio.run(coroutine)
    import uvloop

    return uvloop.run(coroutine)
