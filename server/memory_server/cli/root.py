"""`redis-memory`: runs, checks and administers the memory."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory_core.crypto.secret_files import restrict_umask
from memory_core.errors import InvalidArgument, MemoryServiceError, plain_line
from memory_core.settings.choices import AnswerForm, ToolSet
from memory_server.cli import lazy
from memory_server.cli.commands.agents import agents
from memory_server.cli.commands.audit import audit
from memory_server.cli.commands.bench import bench
from memory_server.cli.commands.connect import connect
from memory_server.cli.commands.dashboard import dashboard
from memory_server.cli.commands.grants import grants
from memory_server.cli.commands.keys import keys
from memory_server.cli.commands.memories import search, show
from memory_server.cli.commands.namespaces import namespaces
from memory_server.cli.commands.reindex import reindex
from memory_server.cli.commands.reports import clusters, duplicates
from memory_server.cli.commands.status import status
from memory_server.cli.commands.tasks import tasks
from memory_server.cli.commands.transfer import export, import_
from memory_server.cli.commands.trust import integrity, purge, quarantine
from memory_server.cli.console import CHECK_FAILED, Console, common_options, exit_code
from memory_server.cli.reference import markdown

if TYPE_CHECKING:
    from memory_core.settings.settings import Settings

log = logging.getLogger(__name__)
app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
for command in (status, connect, search, show, purge, dashboard, duplicates, clusters, export):
    app.command()(command)
app.command("import")(import_)
for command in (reindex, bench):
    app.command()(command)
for commands in (namespaces, agents, tasks, grants, keys, quarantine, integrity, audit):
    app.add_typer(commands)


@app.command()
@common_options("namespace", "config", "data_dir")
def serve(
    console: Console,
    stdio: Annotated[bool, typer.Option("--stdio", help="Serve one client over stdin and stdout.")] = False,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 picks a free one.")] = None,
    host: Annotated[str | None, typer.Option(help="HTTP address; loopback only without authentication.")] = None,
    agent: Annotated[str | None, typer.Option(help="Name of the agent that connects over stdio.")] = None,
    tools: Annotated[ToolSet | None, typer.Option(help="Tools that are listed; a URL's `?tools=` wins.")] = None,
    answers: Annotated[AnswerForm | None, typer.Option(help="Form of answers; a URL's `?answers=` wins.")] = None,
    project: Annotated[
        bool,
        typer.Option("--project", help="With --stdio: derive the namespace from the project in this folder."),
    ] = False,
) -> None:
    """Serve MCP."""
    if project and not stdio:
        hint = "over HTTP, each client names its namespace in the URL: ?namespace=NAME"
        raise InvalidArgument("--project needs --stdio", hint=hint)
    overrides = {"port": port, "host": host, "agent": agent, "tools": tools, "answers": answers}
    settings = lazy.settings.Settings.load(
        console.config, data_dir=console.data_dir, namespace=console.namespace_option, **overrides
    )
    lazy.logs.configure(settings.log_level, settings.log_format)
    if project:
        settings = _of_project(settings)
    _run(_serve(settings, stdio))


@app.command()
@common_options("as_json", "config", "data_dir")
def stop(console: Console) -> None:
    """Stop the embedded Redis and its sidecar."""
    paths = lazy.paths.locate(console.settings.data_dir)
    if not paths.supervisor_lock.exists():  # it is the first file of a memory that starts
        lazy.running.existing_memory(console.settings)
    is_stopped, folder = lazy.stop.stop(paths.data_dir), paths.data_dir
    console.show({"stopped": is_stopped}, "stopped" if is_stopped else f"nothing was running on {folder}")


@app.command()
@common_options("as_json", "config", "data_dir")
def doctor(
    console: Console,
    deep: Annotated[bool, typer.Option("--deep", help="Check every record and the index itself.")] = False,
) -> None:
    """Check Redis, the index, the sidecars and this machine, and print fixes. Exits with 1 if there is a problem."""
    with console.progress() as progress:
        report = _run(lazy.doctor.examine(console.settings, deep=deep, progress=progress))
    console.show(report.model_dump(mode="json"), lambda: lazy.printing.page(report.text()))
    if not report.healthy:
        raise typer.Exit(CHECK_FAILED)


@app.command()
@common_options("as_json", "config")
def settings(
    console: Console,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference, docs/settings.md.")] = False,
) -> None:
    """Show every setting with its value, the source of the value, its default and its environment variable."""
    reference = lazy.settings_reference
    if as_markdown:
        lazy.printing.page(reference.markdown())
        return
    described = reference.describe(console.settings, console.config)
    console.show(
        [one.model_dump(mode="json") for one in described], lambda: lazy.printing.page(reference.table(described))
    )


@app.command(hidden=True)
def reference(
    tools: Annotated[bool, typer.Option("--tools", help="Print docs/tools.md instead.")] = False,
    seen: Annotated[
        ToolSet | None, typer.Option("--list", help="Print what a model sees instead: instructions and these tools.")
    ] = None,
) -> None:
    """Print the reference of all commands, docs/cli.md."""
    if seen is not None:
        lazy.printing.page(lazy.tools_reference.seen_by_models(seen))
        return
    page = lazy.tools_reference.markdown() if tools else markdown(typer.main.get_command(app))
    lazy.printing.page(page)


def main() -> None:
    """Run the command line. A refusal is one line on stderr and an exit code, never a traceback."""
    restrict_umask()
    try:
        app()
    except MemoryServiceError as error:
        lazy.printing.line(error.text(), err=True)
        sys.exit(exit_code(error))


def _of_project(settings: Settings) -> Settings:
    """Name the namespace after the project in this folder, unless a flag, the environment or the file names one."""
    if "namespace" in settings.model_fields_set:
        return settings
    found = lazy.project.find_project(Path.cwd())
    log.info("the namespace of this project is %s, from %s", found.namespace, plain_line(found.source))
    return settings.model_copy(update={"namespace": found.namespace})


async def _serve(settings: Settings, stdio: bool) -> None:
    if stdio:
        await lazy.stdio.serve_stdio(settings)
    else:
        await lazy.http.serve_http(settings)


def _run(coroutine: Any) -> Any:
    return asyncio.run(coroutine) if sys.platform == "win32" else lazy.uvloop.run(coroutine)
