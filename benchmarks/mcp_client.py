"""Calls tools over MCP, for benchmarks. A refusal or a partial answer ends the run."""

from __future__ import annotations

from typing import Any

from mcp import Client
from mcp_types import CallToolResult

_LONG = frozenset({"batch_operations", "semantic_search"})
"""Tools whose answers are cut by default."""


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool; return its structured answer.

    Raises:
        RuntimeError: the tool refused, or answered in part.
    """
    if tool in _LONG:
        arguments = {"max_tokens": 0} | arguments
    result = await client.call_tool(tool, arguments)
    assert isinstance(result, CallToolResult)
    answer = result.structured_content or {}
    if result.is_error or answer.get("partial"):
        raise RuntimeError(f"{tool}: {answer}")
    return answer
