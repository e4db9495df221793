"""Makes MCP tools from typed methods, with strict arguments, small schemas and typed errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar, cast

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resolve import build_resolver_plans, find_resolved_parameters, resolve_arguments
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.context_injection import find_context_parameter
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata, func_metadata
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, InputRequiredResult, TextContent, ToolAnnotations
from pydantic import PrivateAttr, ValidationError
from pydantic_core import ErrorDetails, to_json

from memory_core.errors import ConfirmationNeeded, InvalidArgument, MemoryServiceError, echo
from memory_core.records.authority import Effect
from memory_server.access.gate import Gate
from memory_server.contract.answer import Answer, shorten
from memory_server.contract.arguments import Arguments, Filters, SearchArguments
from memory_server.contract.given_names import GivenNames
from memory_server.contract.tokens import DEFAULT_MAX_TOKENS
from memory_server.engine.audited_calls import named_ids
from memory_server.engine.batch_cache import BatchCache
from memory_server.engine.request_context import RequestContext
from memory_server.mcp.tools.published_schema import published

log = logging.getLogger(__name__)
_SHOWN_PROBLEMS = 3
A = TypeVar("A", bound=Arguments)
EffectsOf = Callable[[Any], Iterable[Effect]]


class StrictTool(Tool):
    """A tool that admits its caller, refuses unknown arguments and returns refusals as typed errors."""

    arguments: type[Arguments]
    schema_of_arguments: dict[str, Any]
    """What is accepted; `parameters` is the shorter form that models read."""
    effects: frozenset[Effect]
    """What every call does; empty for a batch, whose operations are checked one by one."""
    effects_of: EffectsOf | None
    """What a call also does, depending on its arguments."""
    _gate: Gate = PrivateAttr()

    def guarded(self, gate: Gate) -> StrictTool:
        """Admit calls by a gate."""
        self._gate = gate
        return self

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """Run the tool; errors for the caller become an error result."""
        try:
            named = named_ids(arguments)
            async with self._gate.call(context.request_context, self.name, named, self.effects) as request:
                return await self._answer(request, arguments, context)
        except MemoryServiceError as error:
            return refusal(error)

    async def run_within(
        self, batch: RequestContext, arguments: dict[str, Any], context: Context[Any, Any], cache: BatchCache | None
    ) -> Any:
        """Run the tool as one operation of a batch."""
        try:
            with self._gate.operation(batch, self.name, named_ids(arguments), self.effects, cache) as request:
                return await self._answer(request, arguments, context)
        except MemoryServiceError as error:
            return refusal(error)

    def is_allowed(self, request: RequestContext) -> bool:
        """Whether the caller's token allows what every call does."""
        return all(map(request.may, self.effects))

    async def _answer(
        self, request: RequestContext, arguments: dict[str, Any], context: Context[Any, Any]
    ) -> CallToolResult | InputRequiredResult:
        if not _is_json(arguments):
            problem = "the arguments contain a lone surrogate or are nested too deeply"
            raise InvalidArgument(problem, hint="send UTF-8, with less nesting")
        names = GivenNames()
        try:
            args = self.arguments.model_validate(arguments, context=names if request.access is None else None)
        except ValidationError as error:
            raise _invalid(self, error) from None
        if self.effects_of is not None:
            request.check(self.effects_of(args))
        given = {"request": request, "args": args}
        try:
            answer = await self._call(given, context)
        except (MemoryServiceError, MCPError):
            raise
        except Exception as error:
            log.exception("tool %s failed", self.name)
            raise MemoryServiceError("an unexpected error; see the server's log") from error
        if isinstance(answer, InputRequiredResult):
            request.call.outcome = ConfirmationNeeded.code
            return answer
        request.call.succeeded(answer.shown(), answer.shown_besides())
        notes = [*names.notes(), *(() if request.is_in_batch else request.caller.became)]
        if not answer.has_own_limit:
            answer = shorten(answer, DEFAULT_MAX_TOKENS)
        answer.names = "; ".join(notes) or None
        return CallToolResult(
            content=[TextContent(type="text", text=answer.text())],
            structured_content=answer.model_dump(mode="json", exclude_none=True),
        )

    async def _call(self, given: dict[str, Any], context: Context[Any, Any]) -> Answer | InputRequiredResult:
        if self.resolved_params:
            resolved = await resolve_arguments(self.resolved_params, self.resolver_plans, given, context)
            if isinstance(resolved, InputRequiredResult):
                return resolved
            given |= resolved
        if self.context_kwarg is not None:
            given[self.context_kwarg] = context
        return cast(Answer | InputRequiredResult, await self.fn(**given))


def _is_json(arguments: dict[str, Any]) -> bool:
    """Whether the arguments can be sent as UTF-8; Redis and answers carry nothing else."""
    texts = [value for value in arguments.values() if isinstance(value, str)]
    try:
        to_json({name: None if isinstance(value, str) else value for name, value in arguments.items()})
        for text in texts:
            text.encode()  # ten times faster than `to_json` for long texts
    except ValueError:
        return False
    return True


_COMMON_PARAMETERS = ("request", "args")


def make_tool(
    method: Callable[..., Any],
    arguments: type[A],
    *,
    effects: Iterable[Effect],
    effects_of: Callable[[A], Iterable[Effect]] | None = None,
    read_only: bool = False,
    destructive: bool = False,
) -> StrictTool:
    """Make a tool named and described after a method.

    The method takes `request`, the context of the call, and `args`, an `arguments` model. It may also take the SDK's
    context and resolved parameters. Every call has `effects`, and also those that `effects_of` finds in its arguments.
    """
    hints = ToolAnnotations(
        read_only_hint=read_only, destructive_hint=destructive, idempotent_hint=read_only, open_world_hint=False
    )
    context, resolved = find_context_parameter(method), find_resolved_parameters(method)
    schema = compact(arguments.model_json_schema())
    answer = func_metadata(method, skip_names=[*_COMMON_PARAMETERS, *resolved, *([context] if context else [])])
    return StrictTool(
        fn=method,
        name=method.__name__,
        title=None,
        description=" ".join((method.__doc__ or "").split()),
        parameters=published(schema, brief=_described_elsewhere(arguments)),
        schema_of_arguments=schema,
        fn_metadata=FuncMetadata(
            arg_model=ArgModelBase,
            output_schema=refusable(compact(answer.output_schema or {})),
            output_model=answer.output_model,
        ),
        is_async=True,
        context_kwarg=context,
        resolved_params=dict(resolved),
        resolver_plans=build_resolver_plans(resolved, set(_COMMON_PARAMETERS)),
        annotations=hints,
        arguments=arguments,
        effects=frozenset(effects),
        effects_of=effects_of,
    )


def _described_elsewhere(arguments: type[Arguments]) -> Collection[str]:
    """Return the filters, which semantic_search describes for all tools."""
    return Filters.model_fields if issubclass(arguments, Filters) and arguments is not SearchArguments else ()


def compact(schema: dict[str, Any]) -> dict[str, Any]:
    """Shrink a JSON schema for models to read: no titles, no references, no `or null`."""
    definitions = schema.get("$defs", {})

    def shrink(node: Any) -> Any:
        if isinstance(node, list):
            return [shrink(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            target = definitions[node["$ref"].rsplit("/", 1)[-1]]
            return shrink({**target, **{key: value for key, value in node.items() if key != "$ref"}})
        variants = [variant for variant in node.get("anyOf", ()) if variant != {"type": "null"}]
        if len(variants) == 1 and len(node["anyOf"]) == 2:
            rest = {key: value for key, value in node.items() if key not in {"anyOf", "default"}}
            return shrink({**variants[0], **rest})
        dropped = {"$defs"} | ({"title"} if isinstance(node.get("title"), str) else set())
        return {key: shrink(value) for key, value in node.items() if key not in dropped}

    return shrink(schema)


_ERROR_FIELDS = {"code": "string", "message": "string", "hint": "string", "retry_after": "number"}
_ERROR_SCHEMA = {
    "type": "object",
    "properties": {name: {"type": kind} for name, kind in _ERROR_FIELDS.items()},
    "required": ["code", "message"],
}


def refusable(schema: dict[str, Any]) -> dict[str, Any]:
    """Let the schema of an answer describe refusals too.

    Clients on the TypeScript SDK 1.x check error results against the output schema. They replace an error that the
    schema does not describe with a schema error, which hides the cause from the agent.
    """
    described = {key: value for key, value in schema.items() if key != "required"}
    described["properties"] = {**schema.get("properties", {}), "error": _ERROR_SCHEMA}
    if required := schema.get("required"):
        described["anyOf"] = [{"required": required}, {"required": ["error"]}]
    return described


def refusal(error: MemoryServiceError) -> CallToolResult:
    """Make an error result of a refusal."""
    return CallToolResult(
        content=[TextContent(type="text", text=error.text())],
        structured_content={"error": error.details()},
        is_error=True,
    )


def _invalid(tool: Tool, error: ValidationError) -> InvalidArgument:
    problems = error.errors(include_url=False)
    shown = "; ".join(map(_problem, problems[:_SHOWN_PROBLEMS]))
    more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
    allowed = ", ".join(tool.parameters.get("properties", {}))
    return InvalidArgument(f"{shown}{more}", hint=f"arguments of {tool.name}: {allowed}")


def _problem(problem: ErrorDetails) -> str:
    where = echo(".".join(map(str, problem["loc"])))
    unknown = problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1
    return f"{where} is not an argument" if unknown else f"{where}: {problem['msg']}"
