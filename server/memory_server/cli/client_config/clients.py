"""Where each MCP client keeps its servers, and in which form; as their documentation said in November 2026."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from memory_core.errors import InvalidArgument

VARIABLE = "MEMORY_TOKEN"
"""The variable from which a stdio server takes its token."""


class Client(StrEnum):
    """The clients that can be connected."""

    CLAUDE = "claude"
    GEMINI = "gemini"
    VSCODE = "vscode"
    CURSOR = "cursor"
    CODEX = "codex"


@dataclass(frozen=True, slots=True)
class Server:
    """How a client reaches the memory: by a URL, or by a command that it starts itself.

    `token_variable` names the environment variable of the client that holds its token; no token is written down.
    """

    url: str = ""
    command: tuple[str, ...] = ()
    token_variable: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """What decides where files are; by default this machine and its user."""

    home: Path = field(default_factory=Path.home)
    folder: Path = field(default_factory=Path.cwd)
    platform: str = sys.platform
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)


SECTION = {
    Client.CLAUDE: "mcpServers",
    Client.GEMINI: "mcpServers",
    Client.VSCODE: "servers",
    Client.CURSOR: "mcpServers",
    Client.CODEX: "mcp_servers",
}
"""Under which name the file lists servers."""

OURS = frozenset({"type", "url", "httpUrl", "headers", "command", "args", "env", "bearer_token_env_var", "env_vars"})
"""What is set here of a server's entry; anything else in it is the user's and stays."""

NEXT = {
    Client.CLAUDE: "restart Claude Code; `claude mcp list` shows the connection",
    Client.GEMINI: "restart Gemini CLI; `gemini mcp list`, in a folder that it trusts, shows the connection",
    Client.VSCODE: "run `MCP: List Servers` in VS Code and start it",
    Client.CURSOR: "restart Cursor and switch the server on under MCP in its settings",
    Client.CODEX: "restart Codex; `/mcp` shows the connection",
}
_IN_PROJECT = {
    Client.CLAUDE: ".mcp.json",
    Client.GEMINI: ".gemini/settings.json",
    Client.VSCODE: ".vscode/mcp.json",
    Client.CURSOR: ".cursor/mcp.json",
    Client.CODEX: ".codex/config.toml",
}
_REFERENCE = {
    Client.CLAUDE: "${{{}}}",
    Client.GEMINI: "${}",
    Client.VSCODE: "${{env:{}}}",
    Client.CURSOR: "${{env:{}}}",
}
"""How a client's file names an environment variable."""


def config_file(client: Client, place: Place, *, project: bool = False) -> Path:
    """Give the file in which a client keeps its servers: the user's, or the one of the project in this folder."""
    if project:
        return place.folder / _IN_PROJECT[client]
    match client:
        case Client.CLAUDE:
            return Path(place.environment.get("CLAUDE_CONFIG_DIR") or place.home) / ".claude.json"
        case Client.GEMINI:
            return Path(place.environment.get("GEMINI_CLI_HOME") or place.home) / ".gemini" / "settings.json"
        case Client.VSCODE:
            return _of_applications(place) / "Code" / "User" / "mcp.json"
        case Client.CURSOR:
            return place.home / ".cursor" / "mcp.json"
        case Client.CODEX:
            return Path(place.environment.get("CODEX_HOME") or place.home / ".codex") / "config.toml"


def entry(client: Client, server: Server) -> dict[str, Any]:
    """Give the entry of a server in a client's form.

    Raises:
        InvalidArgument: the client cannot hand the token over like this.
    """
    if client is Client.CODEX:
        return _of_codex(server)
    reference = _REFERENCE[client].format(server.token_variable)
    if server.command:
        typed = {} if client is Client.GEMINI else {"type": "stdio"}
        own = {"env": {VARIABLE: reference}} if server.token_variable else {}
        return {**typed, "command": server.command[0], "args": list(server.command[1:]), **own}
    where = {
        Client.CLAUDE: {"type": "http", "url": server.url},
        Client.GEMINI: {"httpUrl": server.url},
        Client.VSCODE: {"type": "http", "url": server.url},
        Client.CURSOR: {"url": server.url},
    }[client]
    return {**where, **({"headers": {"Authorization": f"Bearer {reference}"}} if server.token_variable else {})}


def _of_codex(server: Server) -> dict[str, Any]:
    if not server.command:
        token = {"bearer_token_env_var": server.token_variable} if server.token_variable else {}
        return {"url": server.url, **token}
    if server.token_variable not in {None, VARIABLE}:
        raise InvalidArgument(
            "Codex hands variables to the servers that it starts under their own names only",
            hint=f"put the token into {VARIABLE} and say --token-env {VARIABLE}",
        )
    passed = {"env_vars": [VARIABLE]} if server.token_variable else {}
    return {"command": server.command[0], "args": list(server.command[1:]), **passed}


def _of_applications(place: Place) -> Path:
    """Where programs keep a user's settings on a platform."""
    if place.platform == "darwin":
        return place.home / "Library" / "Application Support"
    if place.platform == "win32":
        return Path(place.environment.get("APPDATA") or place.home / "AppData" / "Roaming")
    return Path(place.environment.get("XDG_CONFIG_HOME") or place.home / ".config")
