"""Connects with chuk-mcp (PyPI), an implementation of the protocol that shares no code with the official SDKs."""

from __future__ import annotations

import asyncio
from typing import Any

from chuk_mcp.protocol.messages import (  # pyright: ignore[reportMissingImports] - installed only in the clients' environment
    send_initialize,
    send_prompts_get,
    send_prompts_list,
    send_resources_read,
    send_tools_call,
    send_tools_list,
)
from chuk_mcp.protocol.messages.resources.send_messages import (  # pyright: ignore[reportMissingImports]
    send_resources_templates_list,
)
from chuk_mcp.transports.http import (  # pyright: ignore[reportMissingImports]
    StreamableHTTPParameters,
    StreamableHTTPTransport,
)
from chuk_mcp.transports.stdio import StdioParameters, StdioTransport  # pyright: ignore[reportMissingImports]
from line_protocol import Target, answer_lines


class Chuk:
    """The client, driven over lines."""

    def __init__(self, streams: tuple[Any, Any], version: str) -> None:
        self._streams = streams
        self._version = version

    async def version(self) -> str:
        """The negotiated protocol version."""
        return self._version

    async def tools(self) -> list[dict[str, Any]]:
        """The tools."""
        return [tool.model_dump(mode="json") for tool in (await send_tools_list(*self._streams)).tools]

    async def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Call a tool."""
        result = await send_tools_call(*self._streams, tool, arguments)
        return {"error": result.isError, "answer": result.structuredContent, "text": result.content[0]["text"]}

    async def templates(self) -> list[str]:
        """The resource templates."""
        found = await send_resources_templates_list(*self._streams)
        return [template.uriTemplate for template in found.resourceTemplates]

    async def read(self, uri: str) -> str:
        """The text of a resource."""
        return (await send_resources_read(*self._streams, uri)).contents[0].text

    async def prompts(self) -> list[str]:
        """The names of the prompts."""
        return [prompt.name for prompt in (await send_prompts_list(*self._streams)).prompts]

    async def prompt(self, name: str, arguments: dict[str, str]) -> str:
        """The text of a prompt."""
        return (await send_prompts_get(*self._streams, name, arguments)).messages[0].content["text"]


async def main() -> None:
    """Connect and answer."""
    target = Target.from_argument()
    command, environment = target.command, target.environment()
    transport = (
        StdioTransport(StdioParameters(command=command[0], args=command[1:], env=environment))
        if command
        else StreamableHTTPTransport(StreamableHTTPParameters(url=target.url, max_retries=1))
    )
    async with transport:
        streams = await transport.get_streams()
        agreed = (await send_initialize(*streams, preferred_version=target.era)).protocolVersion
        transport.set_protocol_version(agreed)
        await answer_lines(Chuk(streams, agreed))


asyncio.run(main())
