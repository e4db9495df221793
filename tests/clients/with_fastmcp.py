"""Connects with FastMCP's client (PyPI: fastmcp-slim)."""

from __future__ import annotations

import asyncio
from typing import Any

from fastmcp import Client  # pyright: ignore[reportMissingImports] - installed only in the clients' environment
from fastmcp.client.transports import StdioTransport  # pyright: ignore[reportMissingImports]
from line_protocol import Target, answer_lines


class FastMcp:
    """The client, driven over lines."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def version(self) -> str:
        """The negotiated protocol version."""
        return self._client.protocol_version

    async def tools(self) -> list[dict[str, Any]]:
        """The tools."""
        return [tool.model_dump(mode="json", by_alias=True) for tool in await self._client.list_tools()]

    async def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Call a tool."""
        result = await self._client.call_tool(tool, arguments, raise_on_error=False)
        return {"error": result.is_error, "answer": result.structured_content, "text": result.content[0].text}

    async def templates(self) -> list[str]:
        """The resource templates."""
        return [template.uri_template for template in await self._client.list_resource_templates()]

    async def read(self, uri: str) -> str:
        """The text of a resource."""
        return (await self._client.read_resource(uri))[0].text

    async def prompts(self) -> list[str]:
        """The names of the prompts."""
        return [prompt.name for prompt in await self._client.list_prompts()]

    async def prompt(self, name: str, arguments: dict[str, str]) -> str:
        """The text of a prompt."""
        return (await self._client.get_prompt(name, arguments)).messages[0].content.text


async def main() -> None:
    """Connect and answer."""
    target = Target.from_argument()
    command = target.command
    where = StdioTransport(command[0], command[1:], target.environment()) if command else target.url
    async with Client(where, mode=target.era) as client:
        await answer_lines(FastMcp(client))


asyncio.run(main())
