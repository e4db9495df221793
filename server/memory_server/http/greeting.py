"""What `make run` prints: how the usual clients connect."""

from __future__ import annotations


def greeting(url: str) -> str:
    """Name the endpoint and the line or snippet that each client needs."""
    return f"""
redis-memory-gpu serves MCP at {url}

  Claude Code   claude mcp add --transport http redis-memory "{url}?agent=claude"
  Gemini CLI    gemini mcp add --transport http redis-memory "{url}?agent=gemini"
  VS Code       code --add-mcp '{{"name":"redis-memory","type":"http","url":"{url}?agent=vscode"}}'
  Python        async with mcp.Client("{url}?agent=me") as client: ...

  Dashboard     {url.removesuffix("mcp")}?agent=claude shows what that agent sees

Ctrl-C leaves; the embedded Redis stops ten seconds after its last user.
"""


def operators_greeting(page: str, key: str) -> str:
    """Name the one-time address of the operator's view; the key stands where browsers do not send it along."""
    return f"""
The dashboard of all agents, for you alone (once, within the hour; `redis-memory dashboard` prints another):
  {page}#operator={key}
"""
