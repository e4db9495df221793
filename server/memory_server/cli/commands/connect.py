"""`redis-memory connect`: writes this memory into an MCP client's configuration."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memory_core.errors import InvalidArgument, echo
from memory_core.settings.choices import AnswerForm, ToolSet
from memory_server.cli import lazy
from memory_server.cli.client_config.clients import NEXT_STEP, Client, Environment, Server, config_file, entry
from memory_server.cli.client_config.names import EntryNames, parameters, with_parameters
from memory_server.cli.console import Console, common_options

if TYPE_CHECKING:
    from memory_server.local.project import Project

_ANSWERS: AnswerForm = "text"
"""All these clients are for chats: the model reads the text, and some hide it if there is a structure too."""


@common_options()
def connect(
    console: Console,
    client: Annotated[Client, typer.Argument(help="The client to configure.")],
    stdio: Annotated[
        bool, typer.Option("--stdio/--http", help="The client starts a server, or uses a running one.")
    ] = False,
    agent: Annotated[str | None, typer.Option(help="Name of the agent; the client's name if omitted.")] = None,
    url: Annotated[str | None, typer.Option(help="URL of the server, if it is not on this machine.")] = None,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable of the client that holds its token, if it needs one.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the server in the client.")] = "redis-memory",
    tools: Annotated[ToolSet | None, typer.Option(help="Tools that the client lists; all if omitted.")] = None,
    project: Annotated[
        bool, typer.Option("--project", help="Only for the project in this folder, with a namespace of its own.")
    ] = False,
    per_project: Annotated[
        bool, typer.Option("--per-project", help="With --stdio: each project in which the client starts has its own.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, without changing it.")] = False,
    only_print: Annotated[bool, typer.Option("--print", help="Print the entry to add by hand; read no file.")] = False,
) -> None:
    """Configure a client to use this memory. A changed file is backed up first; running it again changes nothing."""
    _check(name, token_env, stdio, url)
    if per_project and not stdio:
        raise InvalidArgument("--per-project needs --stdio: a URL names one namespace", hint="or use --project")
    found = _project(console, token_env) if project else None
    names = EntryNames(exact=token_env is not None)
    named = names.agent(agent or parameters(url).get("agent") or (None if token_env else client.value))
    server = Server(
        url="" if stdio else _url(console, url, named, names, found, tools),
        command=_command(console, named, names, tools, derives=per_project or found is not None) if stdio else (),
        token_variable=token_env,
    )
    wanted = entry(client, server)
    for note in names.notes:
        lazy.printing.line(note, err=True)
    if only_print:
        lazy.printing.page(lazy.client_files.snippet(client, name, wanted))
        return
    change = lazy.client_files.plan(client, config_file(client, Environment(), project=project), name, wanted)
    is_written = change.is_needed and not dry_run
    backup = change.write() if is_written else None

    def show() -> None:
        if found is not None:
            lazy.printing.line(f"Namespace {found.namespace}, from {found.source}; --namespace chooses another.")
        if not change.is_needed:
            lazy.printing.line(f"{change.file} is already configured.")
        elif dry_run:
            lazy.printing.page(change.diff())
        else:
            lazy.printing.line(f"Wrote {change.file}{f'; the previous version is {backup}' if backup else ''}.")
            lazy.printing.line(f"Next: {NEXT_STEP[client]}.")
        if not stdio and not url and (problem := _problem(console)):
            lazy.printing.line(problem, err=True)

    result = {"client": client, "file": str(change.file), "name": name, "entry": wanted}
    result |= {"changed": is_written, "would_change": change.is_needed, "backup": str(backup) if backup else None}
    if found is not None:
        result |= {"namespace": found.namespace}
    console.show(result, show)


def _check(name: str, token_env: str | None, stdio: bool, url: str | None) -> None:
    """Refuse values that would have another meaning in a file."""
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise InvalidArgument(f"--name {echo(name)} may contain only letters, digits, - and _")
    if token_env is not None and not (token_env.isidentifier() and token_env.isascii()):
        raise InvalidArgument("--token-env names a variable, not the token", hint="such as --token-env MEMORY_TOKEN")
    if stdio and url:
        raise InvalidArgument("--url needs --http: with --stdio the client starts the server", hint="omit one of them")
    if url is not None and not url.startswith(("http://", "https://")):
        raise InvalidArgument(f"--url {echo(url)} is not a URL", hint="such as https://memory.example/mcp")


def _project(console: Console, token: str | None) -> Project | None:
    """Return the project in this folder; None if a token, a flag, the environment or a file names the namespace."""
    if token is not None or "namespace" in console.settings.model_fields_set:
        return None
    return lazy.project.find_project(Path.cwd())


def _url(
    console: Console,
    url: str | None,
    agent: str | None,
    names: EntryNames,
    project: Project | None,
    tools: ToolSet | None,
) -> str:
    """Return the server's URL, with the names that the token does not determine."""
    base, given = url or f"{_local(console)}/mcp", parameters(url)
    namespace = names.namespace(console.namespace_option or given.get("namespace"))
    if namespace is None and not names.exact:
        namespace = project.namespace if project else console.namespace
    values = {"agent": agent, "namespace": None if namespace == "default" else namespace}
    values |= {"answers": given.get("answers", _ANSWERS), "tools": tools or given.get("tools")}
    return with_parameters(base, values)


def _local(console: Console) -> str:
    """Return the URL of the newest server on the data directory, or where one will listen."""
    settings = console.settings
    return (lazy.running.find_servers(settings) or [lazy.running.configured_url(settings)])[0]


def _problem(console: Console) -> str | None:
    """Say why the client would not reach this memory at the local URL; None if it would."""
    settings, url = console.settings, _local(console)
    answers = asyncio.run(lazy.machine.livez(url))
    if lazy.running.announced_servers(settings):
        return None if answers else f"the server at {url} runs, but does not answer yet"
    if answers and ("data_dir" not in settings.model_fields_set or lazy.running.find_servers(settings)):
        return None  # such as a server in a container
    missing = lazy.running.no_server(settings)
    other = f". The server at {url} has another memory" if answers else ""
    return f"{missing.message} ({missing.hint}){other}"


def _command(
    console: Console, agent: str | None, names: EntryNames, tools: ToolSet | None, *, derives: bool
) -> tuple[str, ...]:
    """Return the command that starts a stdio server of this installation, from any folder.

    With -P, because clients start it in the folder of a project, whose modules must not shadow installed ones.
    """
    script = Path(sys.executable).with_name("redis-memory.exe" if sys.platform == "win32" else "redis-memory")
    start = (str(script),) if script.exists() else (sys.executable, "-P", "-m", "memory_server")
    data_dir = console.data_dir or os.environ.get("MEMORY_DATA_DIR")  # a client may start it without this environment
    variable = os.environ.get("MEMORY_NAMESPACE")
    options = {
        "--agent": agent,
        "--namespace": names.namespace(console.namespace_option or (None if derives else variable)),
        "--config": console.config and str(console.config.resolve()),
        "--data-dir": data_dir and str(Path(data_dir).resolve()),
        "--answers": _ANSWERS,
        "--tools": tools,
    }
    derived = ("--project",) if derives and not console.namespace_option else ()
    given = [part for option, value in options.items() if value for part in (option, value)]
    return (*start, "serve", "--stdio", *derived, *given)
