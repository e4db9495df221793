"""What a connection chose: the form of its answers and the tools that are listed for it.

Some chat clients show the model only `structuredContent` when there is one. The text's marks around what agents wrote
are then lost, and the answer costs twice as many tokens. These clients get text alone, and no output schemas: a client
with an output schema expects structured content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from pydantic import BaseModel

from memory_core.errors import InvalidArgument, echo
from memory_core.records.names import to_name
from memory_core.settings.choices import AnswerForm, ToolSet
from memory_core.settings.settings import Settings
from memory_server.mcp.listing import INSTRUCTIONS, is_listed
from memory_server.mcp.metering import protocol_error

TEXT_CLIENTS = frozenset({"claude-code", "codex-mcp-client", "opencode"})
"""Names in `clientInfo` of the chat clients that show the model only the structure of an answer."""
_GREETINGS = frozenset({"initialize", "server/discover"})


@dataclass(frozen=True, slots=True)
class Choices:
    """The choices of one connection."""

    answers: AnswerForm
    tools: ToolSet

    @classmethod
    def of(cls, context: ServerRequestContext[Any, Any], settings: Settings) -> Choices:
        """Read the URL of an HTTP request, then the settings, then the client's name. Raises InvalidArgument."""
        answers = _from_url(context, "answers", AnswerForm) or settings.answers or _by_name(context)
        return cls(answers, _from_url(context, "tools", ToolSet) or settings.tools)


def _from_url(context: ServerRequestContext[Any, Any], parameter: str, allowed: Any) -> Any:
    given = "" if context.request is None else context.request.query_params.get(parameter, "")
    chosen = given.strip().lower()
    if chosen and chosen not in get_args(allowed):
        message = f"the URL's {parameter} is {echo(given)}; allowed: {', '.join(get_args(allowed))}"
        raise InvalidArgument(message)
    return chosen


def _by_name(context: ServerRequestContext[Any, Any]) -> AnswerForm:
    """Return the form for the client's name. A proxy such as mcp-remote puts itself in brackets behind the name."""
    params = context.session.client_params
    name = params.client_info.name.partition(" (")[0] if params else ""
    return "text" if to_name(name, "") in TEXT_CLIENTS else "both"


class ChosenAnswers:
    """Middleware of the SDK's server: gives each connection the instructions, tools and answers that it chose."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if ctx.method not in _GREETINGS | {"tools/list", "tools/call"}:
            return await call_next(ctx)
        try:
            choices = Choices.of(ctx, self._settings)
        except InvalidArgument as error:
            raise protocol_error(error) from error
        result = _as_sent(await call_next(ctx))
        if ctx.method in _GREETINGS:
            return {**result, "instructions": INSTRUCTIONS[choices.tools]}
        if ctx.method == "tools/list":
            return {**result, "tools": _listed(result["tools"], choices)}
        return _in_form(result, choices.answers)


def _as_sent(result: HandlerResult) -> dict[str, Any]:
    if isinstance(result, BaseModel):
        return result.model_dump(mode="json", by_alias=True, exclude_none=True)
    return result or {}


def _listed(tools: list[dict[str, Any]], choices: Choices) -> list[dict[str, Any]]:
    left_out = {"outputSchema"} if choices.answers == "text" else set[str]()
    listed = [tool for tool in tools if is_listed(tool["name"], choices.tools)]
    return [{key: value for key, value in tool.items() if key not in left_out} for tool in listed]


def _in_form(result: dict[str, Any], form: AnswerForm) -> dict[str, Any]:
    """Leave one form of an answer. Errors keep their text: clients raise it. A question to the person has neither."""
    if "structuredContent" not in result or form == "both":
        return result
    if form == "text":
        return {key: value for key, value in result.items() if key != "structuredContent"}
    return result if result.get("isError") else {**result, "content": []}
