"""The conformance suite's tools and prompt that ask the client through `input_required` results (2026-07-28).

Annotations are evaluated here, not kept as text: the SDK must find the resolver, which is a local function.
"""

from typing import Annotated, Any

from fixture_tools import Ctx, TextAnswer
from mcp.server.mcpserver import MCPServer, Resolve, Sample
from mcp.server.mcpserver.tools import Tool
from mcp_types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    InputRequest,
    InputRequests,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    TextContent,
)

from memory_server.contract.arguments import NoArguments
from memory_server.engine.request_context import RequestContext
from memory_server.mcp.tools.tool_factory import make_tool


def form(message: str, field: str, kind: str = "string") -> InputRequest:
    """Ask the user for one value."""
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(text: str, max_tokens: int = 100) -> InputRequest:
    """Ask the client's model."""
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[_message(text)], max_tokens=max_tokens))


def _message(text: str) -> SamplingMessage:
    return SamplingMessage(role="user", content=TextContent(type="text", text=text))


NAME = form("What is your name?", "name")
CONFIRM = form("Please confirm", "ok", "boolean")
ROUNDS: dict[str, list[InputRequests]] = {
    "test_input_required_result_elicitation": [{"user_name": NAME}],
    "test_input_required_result_sampling": [{"capital_question": sample("What is the capital of France?")}],
    "test_input_required_result_list_roots": [{"client_roots": ListRootsRequest()}],
    "test_input_required_result_request_state": [{"confirm": CONFIRM}],
    "test_input_required_result_tampered_state": [{"confirm": CONFIRM}],
    "test_streaming_elicitation": [{"user_name": NAME}],
    "test_input_required_result_multiple_inputs": [
        {"user_name": NAME, "greeting": sample("Generate a greeting", 50), "client_roots": ListRootsRequest()}
    ],
    "test_input_required_result_multi_round": [
        {"step1": form("Step 1: What is your name?", "name")},
        {"step2": form("Step 2: What is your favorite color?", "color")},
    ],
}


def multi_round_tools() -> list[Tool]:
    """Make the tools that ask before they answer."""
    asking = [_asking_in_rounds(name, rounds) for name, rounds in ROUNDS.items()]
    return [*asking, _asking_what_is_possible(), _needing_a_capability()]


def add_multi_round_prompt(server: MCPServer[Any]) -> None:
    """Add the prompt that asks before it answers."""

    @server.prompt()
    def test_input_required_result_prompt(ctx: Ctx) -> str | InputRequiredResult:
        """A prompt that asks first."""
        if "user_context" in (ctx.input_responses or {}):
            return "Use the context given."
        return InputRequiredResult(
            input_requests={"user_context": form("What context should the prompt use?", "context")}
        )


def _asking_in_rounds(name: str, rounds: list[InputRequests]) -> Tool:
    """A tool that asks the questions of each round. The state holds the round."""

    async def ask(ctx: Ctx, request: RequestContext, args: NoArguments) -> TextAnswer | InputRequiredResult:
        """Ask, then answer."""
        current = int(ctx.request_state or 0)
        if rounds[current].keys() <= (ctx.input_responses or {}).keys():
            current += 1
        if current == len(rounds):
            return TextAnswer(message="state-ok" if ctx.request_state else "answered")
        return InputRequiredResult(input_requests=rounds[current], request_state=str(current))

    ask.__name__ = name
    return make_tool(ask, NoArguments, effects=())


def _asking_what_is_possible() -> Tool:
    async def test_input_required_result_capabilities(
        ctx: Ctx, request: RequestContext, args: NoArguments
    ) -> TextAnswer | InputRequiredResult:
        """Ask only what the client declared."""
        capabilities = ctx.client_capabilities
        requests: InputRequests = {}
        if capabilities and capabilities.elicitation:
            requests["user_name"] = NAME
        if capabilities and capabilities.sampling:
            requests["greeting"] = sample("Generate a greeting")
        if ctx.input_responses or not requests:
            return TextAnswer(message="answered")
        return InputRequiredResult(input_requests=requests)

    return make_tool(test_input_required_result_capabilities, NoArguments, effects=())


def _needing_a_capability() -> Tool:
    def greeting() -> Sample:
        return Sample([_message("Generate a greeting")], max_tokens=50)

    async def test_missing_capability(
        ctx: Ctx, request: RequestContext, args: NoArguments, sampled: Annotated[CreateMessageResult, Resolve(greeting)]
    ) -> TextAnswer:
        """Need sampling, as clear_memory may need elicitation."""
        return TextAnswer(message=sampled.model)

    return make_tool(test_missing_capability, NoArguments, effects=())
