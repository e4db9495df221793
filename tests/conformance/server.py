"""The memory server with the tools, resources and prompts that the MCP conformance suite calls.

Many scenarios need fixtures that no product should ship. They are added to the same server that `redis-memory serve`
runs, through the product's tool factory where a tool returns text, so that each scenario passes through the product's
transport, limits and tools.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fixture_requests import add_multi_round_prompt, multi_round_tools
from fixture_tools import add_media_tools, text_tools
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import MCPServer, UserMessage
from mcp_types import (
    Completion,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    SetLevelRequestParams,
    TextResourceContents,
)

from memory_core.settings.settings import Settings
from memory_server.http import app as http
from memory_server.mcp import server as app
from memory_server.mcp.tools.monitor import monitor_tools
from memory_server.runtime import Runtime

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="


def build(runtime: Runtime) -> MCPServer[Any]:
    """Make the product's server and add the fixtures."""
    tools = [*monitor_tools(runtime), *text_tools(), *multi_round_tools()]
    with patch.object(app, "monitor_tools", return_value=tools):
        server = app.build_server(runtime)
    add_media_tools(server, PIXEL)
    add_multi_round_prompt(server)
    add_resources(server)
    add_prompts(server)
    add_optional_methods(server)
    return server


def add_resources(server: MCPServer[Any]) -> None:
    """Add the resources that the suite reads and watches."""

    @server.resource("test://static-text", mime_type="text/plain")
    def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png")
    def static_binary() -> bytes:
        return b"\x89PNG\r\n\x1a\n"

    @server.resource("test://watched-resource", mime_type="text/plain")
    def watched() -> str:
        return "Watched resource content"

    @server.resource("test://template/{id}/data", mime_type="application/json")
    def template(id: str) -> dict[str, Any]:
        return {"id": id, "templateTest": True, "data": f"Data for ID: {id}"}


def add_prompts(server: MCPServer[Any]) -> None:
    """Add the prompts that the suite gets."""

    @server.prompt()
    def test_simple_prompt() -> str:
        """A prompt without arguments."""
        return "This is a simple prompt for testing."

    @server.prompt()
    def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        """A prompt with arguments."""
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt()
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
        """A prompt that carries a resource."""
        contents = TextResourceContents(
            uri=resourceUri, mime_type="text/plain", text="Embedded resource content for testing."
        )
        return [
            UserMessage(EmbeddedResource(type="resource", resource=contents)),
            UserMessage("Please process the embedded resource above."),
        ]

    @server.prompt()
    def test_prompt_with_image() -> list[UserMessage]:
        """A prompt that carries an image."""
        return [
            UserMessage(ImageContent(type="image", data=PIXEL, mime_type="image/png")),
            UserMessage("Please analyze the image above."),
        ]


def add_optional_methods(server: MCPServer[Any]) -> None:
    """Add optional methods. The product leaves them out and does not declare their capabilities."""

    @server.completion()
    async def complete(*_: Any) -> Completion:
        return Completion(values=[], total=0, has_more=False)

    async def accept(_: ServerRequestContext[Any, Any], __: Any) -> EmptyResult:
        return EmptyResult()

    methods = server._lowlevel_server  # pyright: ignore[reportPrivateUsage] - the SDK has no public way to add it
    methods.add_request_handler("logging/setLevel", SetLevelRequestParams, accept)


def main() -> None:
    """Serve like `redis-memory serve`, with the fixtures added."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level="WARNING", stream=sys.stderr)
    settings = Settings.load(port=options.port, data_dir=options.data_dir)
    with patch.object(http, "build_server", build):
        asyncio.run(http.serve_http(settings))


if __name__ == "__main__":
    main()
