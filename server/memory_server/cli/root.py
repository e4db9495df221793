"""`redis-memory`: serve, stop and check the memory from a shell."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated, Any

import typer

from memory_core.errors import MemoryServiceError
from memory_server.cli.commands.agents import agents
from memory_server.cli.commands.audit import audit
from memory_server.cli.commands.bench import bench
from memory_server.cli.commands.connect import connect
from memory_server.cli.commands.dashboard import dashboard
from memory_server.cli.commands.grants import grants
from memory_server.cli.commands.keys import keys
from memory_server.cli.commands.memories import search, show
from memory_server.cli.commands.reindex import reindex
from memory_server.cli.commands.reports import clusters, duplicates
from memory_server.cli.commands.status import status
from memory_server.cli.commands.tasks import tasks
from memory_server.cli.commands.transfer import export, import_
from memory_server.cli.commands.trust import integrity, purge, quarantine
from memory_server.cli.console import TO_MEND, AsJson, Config, DataDir, exit_code, load_settings

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
app.command()(status)
app.command()(connect)
app.command()(search)
app.command()(show)
app.add_typer(agents, name="agents")
app.add_typer(tasks, name="tasks")
app.add_typer(grants, name="grants")
app.add_typer(keys, name="keys")
app.add_typer(quarantine, name="quarantine")
app.add_typer(integrity, name="integrity")
app.command()(purge)
app.command()(dashboard)
app.add_typer(audit, name="audit")
app.command()(duplicates)
app.command()(clusters)
app.command()(export)
app.command("import")(import_)
app.command()(reindex)
app.command()(bench)


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
    from memory_core.observe import logs
    from memory_core.settings.settings import Settings

    settings = Settings.load(config, port=port, host=host, data_dir=data_dir, namespace=namespace, agent=agent)
    logs.configure(settings.log_level, settings.log_format)
    _run(_serve(settings, stdio))


@app.command()
def stop(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Stop the embedded Redis and its sidecar."""
    from memory_server.local.stop import stop as stop_local

    stopped = stop_local(data_dir)
    said = "stopped" if stopped else "nothing was running"
    typer.echo(json.dumps({"stopped": stopped}) if as_json else said)


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Look at every record, and at the index itself.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Check Redis, the index, the sidecars and this machine, and say how to mend what is wrong. Exits with 1 then."""
    from memory_server.cli import printing
    from memory_server.operations.doctor import examine

    settings = load_settings(config, data_dir)
    with printing.progress(as_json) as shown:
        task = shown.add_task("", total=None, visible=deep)

        def tell(namespace: str, done: int, total: int) -> None:
            shown.update(task, description=namespace, completed=done, total=total)

        report = _run(examine(settings, deep=deep, tell=tell))
    if as_json:
        printing.emit(report.model_dump(mode="json"))
    else:
        typer.echo(printing.plain(report.text()))
    if not report.healthy:
        raise typer.Exit(TO_MEND)


@app.command()
def settings(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Write the reference, docs/settings.md.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Show every setting: its value, where that is from, its default and its environment variable."""
    from memory_core.settings.settings import Settings
    from memory_server.cli import settings_reference as reference

    if as_markdown:
        typer.echo(reference.markdown(), nl=False)
        return
    found = reference.describe(Settings.load(config), config)
    if as_json:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in found], indent=2))
    else:
        typer.echo(reference.table(found))


@app.command(hidden=True)
def reference(
    tools: Annotated[bool, typer.Option("--tools", help="Of all tools instead, docs/tools.md.")] = False,
) -> None:
    """Write the reference of all commands, docs/cli.md."""
    if tools:
        from memory_server.mcp import tools_reference

        typer.echo(tools_reference.markdown(), nl=False)
        return
    from memory_server.cli.reference import markdown

    typer.echo(markdown(typer.main.get_command(app)), nl=False)


def main() -> None:
    """Run the command line; refusals are one line and an exit code, never a trace."""
    try:
        app()
    except MemoryServiceError as error:
        typer.echo(error.text(), err=True)
        sys.exit(exit_code(error))


async def _serve(settings: Any, stdio: bool) -> None:
    if stdio:
        from memory_server.mcp.stdio import serve_stdio

        await serve_stdio(settings)
    else:
        from memory_server.http.app import serve_http

        await serve_http(settings)


def _run(coroutine: Any) -> Any:
    if sys.platform == "win32":
        return asyncio.run(coroutine)
    import uvloop

    return uvloop.run(coroutine)
