"""The configuration file and entry format of each MCP client, as documented in November 2026."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from memory_core.errors import InvalidArgument

STANDARD_VARIABLE = "MEMORY_TOKEN"  # the environment variable from which a stdio server reads its token


class Client(StrEnum):
    """The supported clients."""

    CLAUDE = "claude"
    GEMINI = "gemini"
    VSCODE = "vscode"
    CURSOR = "cursor"
    CODEX = "codex"


@dataclass(frozen=True, slots=True)
class Server:
    """How a client reaches the memory: by a URL, or by a command that it starts.

    `token_variable` names the client's environment variable that holds its token. Tokens are never written.
    """

    url: str = ""
    command: tuple[str, ...] = ()
    token_variable: str | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """Determines where files are; by default this machine, user and working directory."""

    home: Path = field(default_factory=Path.home)
    folder: Path = field(default_factory=Path.cwd)
    platform: str = sys.platform
    variables: Mapping[str, str] = field(default_factory=lambda: os.environ)


SECTION = {
    Client.CLAUDE: "mcpServers",
    Client.GEMINI: "mcpServers",
    Client.VSCODE: "servers",
    Client.CURSOR: "mcpServers",
    Client.CODEX: "mcp_servers",
}
"""The key under which the file lists servers."""

OWNED_FIELDS = frozenset(
    {"type", "url", "httpUrl", "headers", "command", "args", "env", "bearer_token_env_var", "env_vars"}
)
"""Fields of an entry that we write. Other fields belong to the user and stay."""

NEXT_STEP = {
    Client.CLAUDE: "restart Claude Code; `claude mcp list` shows the connection",
    Client.GEMINI: "restart Gemini CLI; `gemini mcp list`, in a folder that it trusts, shows the connection",
    Client.VSCODE: "run `MCP: List Servers` in VS Code and start it",
    Client.CURSOR: "restart Cursor and switch the server on under MCP in its settings",
    Client.CODEX: "restart Codex; `/mcp` shows the connection",
}
_PROJECT_FILE = {
    Client.CLAUDE: ".mcp.json",
    Client.GEMINI: ".gemini/settings.json",
    Client.VSCODE: ".vscode/mcp.json",
    Client.CURSOR: ".cursor/mcp.json",
    Client.CODEX: ".codex/config.toml",
}
_VARIABLE_REFERENCE = {
    Client.CLAUDE: "${{{}}}",
    Client.GEMINI: "${}",
    Client.VSCODE: "${{env:{}}}",
    Client.CURSOR: "${{env:{}}}",
}
"""How a client's file refers to an environment variable."""


def config_file(client: Client, environment: Environment, *, project: bool = False) -> Path:
    """Return the file that lists a client's servers, for the user or for the project in this folder.

    Raises:
        InvalidArgument: the project, which others may have made, has a link out of its folder there.
    """
    if project:
        return _in_project(environment.folder, environment.folder / _PROJECT_FILE[client])
    match client:
        case Client.CLAUDE:
            return Path(environment.variables.get("CLAUDE_CONFIG_DIR") or environment.home) / ".claude.json"
        case Client.GEMINI:
            return Path(environment.variables.get("GEMINI_CLI_HOME") or environment.home) / ".gemini" / "settings.json"
        case Client.VSCODE:
            return _application_folder(environment) / "Code" / "User" / "mcp.json"
        case Client.CURSOR:
            return environment.home / ".cursor" / "mcp.json"
        case Client.CODEX:
            return Path(environment.variables.get("CODEX_HOME") or environment.home / ".codex") / "config.toml"


def _in_project(folder: Path, file: Path) -> Path:
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InvalidArgument(f"{file} is a link out of this project", hint="remove it, or omit --project")
    return file


def entry(client: Client, server: Server) -> dict[str, Any]:
    """Return a server's entry in a client's format. Raises InvalidArgument if it cannot pass the token."""
    if client is Client.CODEX:
        return _codex_entry(server)
    reference = _VARIABLE_REFERENCE[client].format(server.token_variable)
    if server.command:
        kind = {} if client is Client.GEMINI else {"type": "stdio"}
        env = {"env": {STANDARD_VARIABLE: reference}} if server.token_variable else {}
        return {**kind, "command": server.command[0], "args": list(server.command[1:]), **env}
    address = {
        Client.CLAUDE: {"type": "http", "url": server.url},
        Client.GEMINI: {"httpUrl": server.url},
        Client.VSCODE: {"type": "http", "url": server.url},
        Client.CURSOR: {"url": server.url},
    }[client]
    return {**address, **({"headers": {"Authorization": f"Bearer {reference}"}} if server.token_variable else {})}


def _codex_entry(server: Server) -> dict[str, Any]:
    if not server.command:
        token = {"bearer_token_env_var": server.token_variable} if server.token_variable else {}
        return {"url": server.url, **token}
    if server.token_variable not in {None, STANDARD_VARIABLE}:
        raise InvalidArgument(
            "Codex passes variables to stdio servers only under their own names",
            hint=f"put the token into {STANDARD_VARIABLE} and give --token-env {STANDARD_VARIABLE}",
        )
    passed = {"env_vars": [STANDARD_VARIABLE]} if server.token_variable else {}
    return {"command": server.command[0], "args": list(server.command[1:]), **passed}


def _application_folder(environment: Environment) -> Path:
    if environment.platform == "darwin":
        return environment.home / "Library" / "Application Support"
    if environment.platform == "win32":
        return Path(environment.variables.get("APPDATA") or environment.home / "AppData" / "Roaming")
    return Path(environment.variables.get("XDG_CONFIG_HOME") or environment.home / ".config")
