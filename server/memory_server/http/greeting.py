"""The text that `make run` prints: how common clients connect."""

from __future__ import annotations


def greeting(url: str) -> str:
    """Name the endpoint, and the command or code for each client."""
    return f"""
redis-memory-gpu serves MCP at {url}

  Claude Code   claude mcp add --transport http redis-memory "{url}?agent=claude"
  Gemini CLI    gemini mcp add --transport http redis-memory "{url}?agent=gemini"
  VS Code       code --add-mcp '{{"name":"redis-memory","type":"http","url":"{url}?agent=vscode"}}'
  Python        async with mcp.Client("{url}?agent=me") as client: ...

  Dashboard     {url.removesuffix("mcp")}?agent=claude shows the view of that agent

Ctrl-C stops the server; the embedded Redis stops ten seconds after its last user.
"""


def operators_greeting(page: str, key: str | None) -> str:
    """Name the one-time URL of the operator's view, or without a key say how to get it.

    Browsers do not send the part after `#`.
    """
    if key is None:
        return "`redis-memory dashboard` prints a one-time URL of the operator's dashboard.\n"
    return f"""
The operator's dashboard of all agents (a one-time URL, valid for an hour; `redis-memory dashboard` prints another):
  {page}#operator={key}
"""
