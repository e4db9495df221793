"""Makes MCP tools of typed methods: strict arguments, small schemas, typed errors, a short text form."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import CallToolResult, InputRequiredResult, TextContent, ToolAnnotations
from pydantic import PrivateAttr, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, to_json

from memory_core.errors import ConfirmationNeeded, InvalidArgument, MemoryServiceError, Overloaded, echo
from memory_core.records.access import Scope
from memory_server.access.gate import Gate
from memory_server.contract.answer import Answer
from memory_server.contract.arguments import Arguments
from memory_server.engine.audited_calls import Call, named_ids

log = logging.getLogger(__name__)
_SHOWN_PROBLEMS = 3
_UTF_8 = "send UTF-8, and little nesting"


class _Metadata(FuncMetadata):
    """Validates arguments with a model of the contract, which knows itself which texts stand for lists and objects."""

    contract: Annotated[type[Arguments], WithJsonSchema(None)]

    def validate_arguments(self, arguments_to_validate: dict[str, Any]) -> dict[str, Any]:
        """Give the tool's method the whole model as `args`."""
        return {"args": self.contract.model_validate(arguments_to_validate)}


class StrictTool(Tool):
    """A tool that looks at its caller first, refuses unknown arguments and answers every refusal in one typed form."""

    _scope: Scope | None = PrivateAttr(default="admin")
    _gate: Gate = PrivateAttr()

    @property
    def scope(self) -> Scope | None:
        """What a caller's token must allow; None where the operations of a batch are asked one by one."""
        return self._scope

    @property
    def arguments(self) -> type[Arguments]:
        """The model of its arguments."""
        return cast(_Metadata, self.fn_metadata).contract

    def guarded(self, gate: Gate) -> StrictTool:
        """Let calls in by a gate."""
        self._gate = gate
        return self

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """Run the tool; errors that the caller should read come back as an error result."""
        try:
            async with self._gate.working(context.request_context, self.name):
                return await self._run(arguments, context)
        except Overloaded as error:
            return refusal(error)

    async def _run(self, arguments: dict[str, Any], context: Context[Any, Any]) -> Any:
        with self._gate.noting(context.request_context, self.name, named_ids(arguments)) as call:
            try:
                await self._gate.admit(context.request_context, self._scope)
            except MemoryServiceError as error:
                return _refused(call, error)
            return await self._answer(arguments, context, call)

    async def run_within(self, arguments: dict[str, Any], context: Context[Any, Any]) -> Any:
        """Run the tool as a part of a call that was let in and counted."""
        with self._gate.noting(context.request_context, self.name, named_ids(arguments)) as call:
            refused = self.refused(context)
            return _refused(call, refused) if refused else await self._answer(arguments, context, call)

    def refused(self, context: Context[Any, Any]) -> MemoryServiceError | None:
        """Why the caller may not use the tool at all, if so."""
        try:
            self._gate.check(context.request_context, self._scope)
        except MemoryServiceError as error:
            return error
        return None

    async def _answer(self, arguments: dict[str, Any], context: Context[Any, Any], call: Call) -> Any:
        if not _is_json(arguments):
            problem = "the arguments hold a lone surrogate or are nested too deeply"
            return _refused(call, InvalidArgument(problem, hint=_UTF_8))
        try:
            answer = await super().run(arguments, context, convert_result=False)
        except ToolError as error:
            return _refused(call, _cause(self, error))
        if isinstance(answer, InputRequiredResult):
            call.outcome = ConfirmationNeeded.code
            return answer
        return _success(call, cast(Answer, answer))


def _is_json(arguments: dict[str, Any]) -> bool:
    """Whether it could be sent as UTF-8: neither Redis nor an answer can carry anything else."""
    try:
        to_json(arguments)
    except ValueError:
        return False
    return True


_BY_KIND = "by kind"


def make_tool(
    method: Callable[..., Any],
    arguments: type[Arguments],
    *,
    read_only: bool = False,
    destructive: bool = False,
    scope: Scope | Literal["by kind"] | None = _BY_KIND,
) -> StrictTool:
    """Make a tool named and described after a method that takes `ctx` and `args`, an `arguments` model.

    Its callers need `scope`: unless said otherwise `read` if it is read-only, else `write`.
    """
    hints = ToolAnnotations(
        read_only_hint=read_only, destructive_hint=destructive, idempotent_hint=read_only, open_world_hint=False
    )
    loose = Tool.from_function(method, description=(method.__doc__ or "").strip(), annotations=hints)
    answer = loose.fn_metadata
    output_schema = refusable(compact(answer.output_schema or {}))
    metadata = _Metadata(
        arg_model=ArgModelBase, contract=arguments, output_schema=output_schema, output_model=answer.output_model
    )
    fields = {name: getattr(loose, name) for name in Tool.model_fields}
    parameters = compact(arguments.model_json_schema())
    tool = StrictTool.model_validate(fields | {"fn_metadata": metadata, "parameters": parameters})
    by_kind: Scope = "read" if read_only else "write"
    tool._scope = by_kind if scope == _BY_KIND else scope  # pyright: ignore[reportPrivateUsage] - it is made here
    return tool


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


_ERROR_SCHEMA = {
    "type": "object",
    "properties": {
        "code": {"type": "string"},
        "message": {"type": "string"},
        "hint": {"type": "string"},
        "retry_after": {"type": "number"},
    },
    "required": ["code", "message"],
}


def refusable(schema: dict[str, Any]) -> dict[str, Any]:
    """Let the schema of an answer describe refusals too.

    Clients on the TypeScript SDK 1.x check error results against the output schema: what it does not describe they
    throw away, and the agent reads of a broken schema instead of what it did wrong.
    """
    described = {key: value for key, value in schema.items() if key != "required"}
    described["properties"] = {**schema.get("properties", {}), "error": _ERROR_SCHEMA}
    if required := schema.get("required"):
        described["anyOf"] = [{"required": required}, {"required": ["error"]}]
    return described


def _success(call: Call, answer: Answer) -> CallToolResult:
    call.succeeded(answer.shown(), answer.shown_besides())
    return CallToolResult(
        content=[TextContent(type="text", text=answer.text())],
        structured_content=answer.model_dump(mode="json", exclude_none=True),
    )


def _refused(call: Call, cause: MemoryServiceError) -> CallToolResult:
    call.outcome = cause.code
    return refusal(cause)


def refusal(cause: MemoryServiceError) -> CallToolResult:
    """Make an error result of a refusal."""
    details = {"code": cause.code, "message": cause.message, "hint": cause.hint, "retry_after": cause.retry_after}
    hint = f" ({cause.hint})" if cause.hint else ""
    return CallToolResult(
        content=[TextContent(type="text", text=f"{cause.code}: {cause.message}{hint}")],
        structured_content={"error": {key: value for key, value in details.items() if value not in (None, "")}},
        is_error=True,
    )


def _cause(tool: Tool, error: ToolError) -> MemoryServiceError:
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return _invalid(tool, cause)
    if isinstance(cause, MemoryServiceError):
        return cause
    if not isinstance(cause, ToolError | None):
        log.error("tool %s failed", tool.name, exc_info=cause)
    return MemoryServiceError(str(error) if cause is None else "an unexpected error; the server's log has it")


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
