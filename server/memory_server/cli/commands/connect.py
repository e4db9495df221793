"""`redis-memory connect`: has an MCP client use this memory, by writing what it needs into its configuration."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import typer

from memory_core.errors import InvalidArgument, echo
from memory_server.cli.client_config.clients import NEXT, Client, Place, Server, config_file, entry
from memory_server.cli.console import AsJson, Config, DataDir, Namespace, load_settings

if TYPE_CHECKING:
    from memory_core.settings.settings import Settings


def connect(
    client: Annotated[Client, typer.Argument(help="Which client.")],
    stdio: Annotated[
        bool, typer.Option("--stdio/--http", help="The client starts a server itself, or uses one that runs.")
    ] = False,
    agent: Annotated[str | None, typer.Option(help="Name of the agent; the client's own if left out.")] = None,
    url: Annotated[str | None, typer.Option(help="Where the server answers, if not on this machine.")] = None,
    token_env: Annotated[
        str | None, typer.Option(help="Variable in the client's environment that holds its token, if it needs one.")
    ] = None,
    name: Annotated[str, typer.Option(help="What the client calls the server.")] = "redis-memory",
    project: Annotated[bool, typer.Option("--project", help="For the project in this folder alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    only_print: Annotated[bool, typer.Option("--print", help="Print what to add by hand; read no file.")] = False,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Have a client use this memory. A changed file is kept beside itself; doing it again changes nothing."""
    from memory_server.cli.client_config import writer

    _check(name, token_env, stdio, url)
    settings = load_settings(config, data_dir, namespace)
    by = agent or (None if token_env else client.value)
    server = Server(
        url="" if stdio else _url(settings, url, by, namespace, token_env),
        command=_command(by, namespace, config, data_dir) if stdio else (),
        token_variable=token_env,
    )
    wanted = entry(client, server)
    if only_print:
        typer.echo(writer.snippet(client, name, wanted), nl=False)
        return
    change = writer.plan(client, config_file(client, Place(), project=project), name, wanted)
    kept = change.write() if change.is_needed and not dry_run else None
    if as_json:
        told = {"client": client, "file": str(change.file), "name": name, "entry": wanted}
        told |= {"changed": change.is_needed and not dry_run, "would_change": change.is_needed}
        typer.echo(json.dumps({**told, "backup": str(kept) if kept else None}, indent=2))
        return
    if not change.is_needed:
        typer.echo(f"{change.file} has it already.")
    elif dry_run:
        typer.echo(change.diff(), nl=False)
    else:
        typer.echo(f"{change.file} is written{f'; as it was it is kept in {kept}' if kept else ''}.")
        typer.echo(f"Now {NEXT[client]}.")
    if not stdio and not url and not asyncio.run(_answers(settings)):
        typer.echo("No server answers there now: `make run`, or redis-memory serve, starts one.", err=True)


def _check(name: str, token_env: str | None, stdio: bool, url: str | None) -> None:
    """Refuse names that would mean something else in a file.

    Raises:
        InvalidArgument: one does, or a URL is given for a server that the client starts.
    """
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise InvalidArgument(f"--name {echo(name)} has other characters than letters, digits, - and _")
    if token_env is not None and not (token_env.isidentifier() and token_env.isascii()):
        raise InvalidArgument(
            "--token-env takes the name of a variable, not the token", hint="such as --token-env MEMORY_TOKEN"
        )
    if stdio and url:
        raise InvalidArgument("--url goes with --http: on stdio the client starts the server", hint="leave one out")
    if url is not None and not url.startswith(("http://", "https://")):
        raise InvalidArgument(f"--url {echo(url)} is no URL", hint="such as https://memory.example/mcp")


def _url(settings: Settings, url: str | None, agent: str | None, namespace: str | None, token: str | None) -> str:
    """Give the URL, with the names that are not left to a token."""
    scheme = "https" if settings.tls_cert else "http"
    base = url or f"{scheme}://127.0.0.1:{settings.port}/mcp"
    named = {"agent": agent, "namespace": namespace if namespace or token else settings.namespace}
    if named["namespace"] == "default":
        named["namespace"] = None
    query = urlencode({key: value for key, value in named.items() if value})
    return f"{base}{'&' if '?' in base else '?'}{query}" if query else base


def _command(agent: str | None, namespace: str | None, config: Path | None, data_dir: Path | None) -> tuple[str, ...]:
    """Give the command that starts a stdio server of this installation, from any folder."""
    script = Path(sys.executable).with_name("redis-memory.exe" if sys.platform == "win32" else "redis-memory")
    start = (str(script),) if script.exists() else (sys.executable, "-m", "memory_server")
    options = {"--agent": agent, "--namespace": namespace}
    options |= {name: str(path.resolve()) for name, path in (("--config", config), ("--data-dir", data_dir)) if path}
    given = [part for option, value in options.items() if value for part in (option, value)]
    return (*start, "serve", "--stdio", *given)


async def _answers(settings: Settings) -> bool:
    from memory_server.operations.health.machine import livez

    return bool(await livez(settings))
