"""The text that `make run` prints: how common clients connect."""

from __future__ import annotations


def greeting(url: str, *, with_tokens: bool = False) -> str:
    """Name the endpoint, and the command or code for each client. `with_tokens`: each client must send a token."""
    page = url.removesuffix("mcp")
    return f"""
redis-memory-gpu serves MCP at {url}

{_with_tokens(url, page) if with_tokens else _without_tokens(url, page)}

Ctrl-C stops the server; the embedded Redis stops ten seconds after its last user.
"""


def _without_tokens(url: str, page: str) -> str:
    return f"""  Claude Code   claude mcp add --transport http redis-memory "{url}?agent=claude"
  Gemini CLI    gemini mcp add --transport http redis-memory "{url}?agent=gemini"
  VS Code       code --add-mcp '{{"name":"redis-memory","type":"http","url":"{url}?agent=vscode"}}'
  Python        async with mcp.Client("{url}?agent=me") as client: ...

  Dashboard     {page}?agent=claude shows the view of that agent"""


def _with_tokens(url: str, page: str) -> str:
    return f"""  Each client needs a token; `redis-memory agents token NAME` issues one.

  Claude Code   claude mcp add --transport http redis-memory "{url}" --header "Authorization: Bearer TOKEN"
  Others        redis-memory connect CLIENT --url "{url}" --token-env VARIABLE

  Dashboard     {page} asks for a token and shows the view of its agent"""


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
