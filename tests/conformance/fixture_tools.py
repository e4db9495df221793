"""The conformance suite's tools for both protocol eras, made by the product's tool factory where they return text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.tools import Tool
from mcp_types import (
    AudioContent,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)
from pydantic import BaseModel, Field

from memory_core.errors import InvalidArgument
from memory_server.contract.answer import Answer
from memory_server.contract.arguments import Arguments, NoArguments
from memory_server.engine.request_context import RequestContext
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool

Ctx = Context[Any, Any]
STEP_SECONDS = 0.05
SILENCE = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
HEADED_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
    "required": ["region"],
}
RICH_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


class TextAnswer(Answer):
    """A text answer."""

    message: str

    def lines(self) -> list[str]:
        """The text."""
        return [self.message]


class Prompted(Arguments):
    """test_sampling"""

    prompt: str


class Messaged(Arguments):
    """test_elicitation"""

    message: str


class Headed(Arguments):
    """test_x_mcp_header"""

    region: str


class Person(BaseModel):
    """What test_elicitation asks for."""

    username: str = Field(description="User's response")
    email: str = Field(description="User's email address")


class Defaults(BaseModel):
    """One default per primitive type."""

    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: Literal["active", "inactive", "pending"] = "active"
    verified: bool = True


class Choices(BaseModel):
    """Every way to write an enumeration."""

    untitledSingle: Literal["option1", "option2", "option3"]
    titledSingle: str = Field(
        json_schema_extra={"oneOf": [{"const": f"value{n}", "title": f"Option {n}"} for n in (1, 2, 3)]}
    )
    legacyEnum: str = Field(
        json_schema_extra={"enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"]}
    )
    untitledMulti: list[Literal["option1", "option2", "option3"]]
    titledMulti: list[str] = Field(
        json_schema_extra={"items": {"anyOf": [{"const": f"value{n}", "title": f"Choice {n}"} for n in (1, 2, 3)]}}
    )


def text_tools() -> list[Tool]:
    """The tools that return text."""
    return [*_answering_tools(), *_asking_tools(), *_notifying_tools(), _rich_schema_tool()]


def _answering_tools() -> list[Tool]:
    async def test_simple_text(ctx: Ctx, request: RequestContext, args: NoArguments) -> TextAnswer:
        """Answer a text."""
        return TextAnswer(message="This is a simple text response for testing.")

    async def test_error_handling(ctx: Ctx, request: RequestContext, args: NoArguments) -> TextAnswer:
        """Fail."""
        raise InvalidArgument("This tool intentionally returns an error for testing")

    async def test_x_mcp_header(ctx: Ctx, request: RequestContext, args: Headed) -> TextAnswer:
        """Take an argument that a header repeats."""
        return TextAnswer(message=args.region)

    return [
        _fixture(test_simple_text, NoArguments),
        _fixture(test_error_handling, NoArguments),
        _with_schema(_fixture(test_x_mcp_header, Headed), HEADED_SCHEMA),
    ]


def _asking_tools() -> list[Tool]:
    async def test_sampling(ctx: Ctx, request: RequestContext, args: Prompted) -> TextAnswer:
        """Ask the client's model."""
        message = SamplingMessage(role="user", content=TextContent(type="text", text=args.prompt))
        result = await ctx.session.create_message(  # pyright: ignore[reportDeprecated]
            [message], max_tokens=100, related_request_id=ctx.request_id
        )
        return TextAnswer(message=f"LLM response: {result.content.text if result.content.type == 'text' else ''}")

    async def test_elicitation(ctx: Ctx, request: RequestContext, args: Messaged) -> TextAnswer:
        """Ask the person."""
        return await _ask(ctx, args.message, Person)

    async def test_elicitation_sep1034_defaults(ctx: Ctx, request: RequestContext, args: NoArguments) -> TextAnswer:
        """Ask with defaults."""
        return await _ask(ctx, "Please provide user information", Defaults)

    async def test_elicitation_sep1330_enums(ctx: Ctx, request: RequestContext, args: NoArguments) -> TextAnswer:
        """Ask with enumerations."""
        return await _ask(ctx, "Please choose", Choices)

    return [
        _fixture(test_sampling, Prompted),
        _fixture(test_elicitation, Messaged),
        _fixture(test_elicitation_sep1034_defaults, NoArguments),
        _fixture(test_elicitation_sep1330_enums, NoArguments),
    ]


async def _ask(ctx: Ctx, message: str, schema: type[BaseModel]) -> TextAnswer:
    result = await ctx.elicit(message, schema)
    content = result.data.model_dump_json() if result.action == "accept" else "{}"
    return TextAnswer(message=f"Elicitation completed: action={result.action}, content={content}")


def _notifying_tools() -> list[Tool]:
    async def test_tool_with_logging(ctx: Ctx, request: RequestContext, args: NoArguments) -> TextAnswer:
        """Log three times."""
        for message in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.log("info", message)  # pyright: ignore[reportDeprecated]
            await asyncio.sleep(STEP_SECONDS)
        return TextAnswer(message="Logged.")

    async def test_logging_tool(ctx: Ctx, request: RequestContext, args: NoArguments) -> TextAnswer:
        """Log once. The message must not reach a client that did not request logs."""
        await ctx.log("info", "unasked")  # pyright: ignore[reportDeprecated]
        return TextAnswer(message="Logged.")

    async def test_tool_with_progress(ctx: Ctx, request: RequestContext, args: NoArguments) -> TextAnswer:
        """Report progress three times."""
        for progress in (0, 50, 100):
            await ctx.report_progress(progress, 100, f"{progress} of 100")
            await asyncio.sleep(STEP_SECONDS)
        return TextAnswer(message="Done.")

    async def test_reconnection(ctx: Ctx, request: RequestContext, args: NoArguments) -> TextAnswer:
        """Close the stream before answering."""
        await ctx.close_sse_stream()
        await asyncio.sleep(STEP_SECONDS)
        return TextAnswer(message="Reconnection test completed")

    async def test_trigger_tool_change(ctx: Ctx, request: RequestContext, args: NoArguments) -> TextAnswer:
        """Say that the tools changed."""
        await ctx.notify_tools_changed()
        return TextAnswer(message="Told.")

    async def test_trigger_prompt_change(ctx: Ctx, request: RequestContext, args: NoArguments) -> TextAnswer:
        """Say that the prompts changed."""
        await ctx.notify_prompts_changed()
        return TextAnswer(message="Told.")

    methods = (test_tool_with_logging, test_logging_tool, test_tool_with_progress, test_reconnection)
    return [
        _fixture(method, NoArguments) for method in (*methods, test_trigger_tool_change, test_trigger_prompt_change)
    ]


def _rich_schema_tool() -> Tool:
    async def json_schema_2020_12_tool(ctx: Ctx, request: RequestContext, args: NoArguments) -> TextAnswer:
        """Tool with JSON Schema 2020-12 features"""
        return TextAnswer(message="Only its schema matters.")

    return _with_schema(_fixture(json_schema_2020_12_tool, NoArguments), RICH_SCHEMA)


def _fixture(method: Callable[..., Any], arguments: type[Arguments]) -> StrictTool:
    """A tool that needs no scope."""
    return make_tool(method, arguments, effects=())


def _with_schema(tool: Tool, schema: dict[str, Any]) -> Tool:
    """Show another schema than the argument model's: the product's models use no such keywords."""
    return tool.model_copy(update={"parameters": schema})


def add_media_tools(server: MCPServer[Any], pixel: str) -> None:
    """Add the tools that answer media; our tool maker makes none such."""
    image = ImageContent(type="image", data=pixel, mime_type="image/png")
    mixed: list[ContentBlock] = [
        TextContent(type="text", text="Multiple content types test:"),
        image,
        _embedded("test://mixed-content-resource", "application/json", '{"test": "data", "value": 123}'),
    ]

    @server.tool()
    def test_image_content() -> CallToolResult:
        """Answer an image."""
        return CallToolResult(content=[image])

    @server.tool()
    def test_audio_content() -> CallToolResult:
        """Answer a sound."""
        return CallToolResult(content=[AudioContent(type="audio", data=SILENCE, mime_type="audio/wav")])

    @server.tool()
    def test_embedded_resource() -> CallToolResult:
        """Answer a resource."""
        text = "This is an embedded resource content."
        return CallToolResult(content=[_embedded("test://embedded-resource", "text/plain", text)])

    @server.tool()
    def test_multiple_content_types() -> CallToolResult:
        """Answer a text, an image and a resource."""
        return CallToolResult(content=mixed)


def _embedded(uri: str, mime_type: str, text: str) -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=mime_type, text=text))
