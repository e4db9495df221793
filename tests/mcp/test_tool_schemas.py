"""Tool schemas are strict and describe what clients check, including refusals."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from support.in_process import InProcess
from support.stack import Agent, Server
from support.tool_schemas import problems_of

WHOLE = {"type": "object", "additionalProperties": False, "properties": {"a": {"type": "string"}}, "required": ["a"]}


async def test_all_tool_schemas_pass_the_strict_check(alice: Agent) -> None:
    tools = (await alice.client.list_tools()).tools
    assert len(tools) >= 23
    assert not [problem for tool in tools for problem in problems_of(tool.model_dump(mode="json", by_alias=True))]


async def test_refusals_match_the_output_schema(alice: Agent) -> None:
    """The TypeScript SDK 1.x passes on an error result only if the tool's output schema describes it."""
    for tool in (await alice.client.list_tools()).tools:
        result = await alice.raw(tool.name, unheard_of=1)
        assert result.is_error
        error = (result.structured_content or {})["error"]
        assert error["code"] == "invalid_argument"
        Draft202012Validator(tool.output_schema or {}).validate(result.structured_content)


async def test_incomplete_answers_do_not_match_the_output_schema(server: Server) -> None:
    tools = await InProcess.over(server).tools.list_tools()
    (store,) = [tool for tool in tools if tool.name == "store_memory"]
    validator = Draft202012Validator(store.output_schema or {})
    answer = {"partial": False, "memory_id": "m", "vector": "ready", "visibility": "private", "durability": "memory"}
    assert validator.is_valid(answer)
    assert not validator.is_valid({name: value for name, value in answer.items() if name != "memory_id"})
    assert not validator.is_valid({"error": {"message": "of no kind"}})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"type": "array"}, "not an object"),
        ({"type": "thing"}, "is not valid under any"),
        ({"required": ["b"]}, "requires b"),
        ({"required": "a"}, "is not of type 'array'"),
        ({"additionalProperties": True}, "accepts undeclared arguments"),
        ({"anyOf": [{"required": ["a"]}]}, "alternatives at its top"),
        ({"properties": {"a": {"$ref": "#/x"}}}, ".a has the keyword $ref"),
        ({"properties": {"a": {"type": "array"}}}, ".a is a list without an item type"),
        ({"properties": {"a": {"type": "array", "items": {"if": {}}}}}, ".a.items has the keyword if"),
    ],
)
def test_strict_check_reports(change: dict[str, Any], problem: str) -> None:
    assert problems_of({"name": "t", "inputSchema": WHOLE, "outputSchema": WHOLE}) == []
    problems = problems_of({"name": "t", "inputSchema": WHOLE | change, "outputSchema": WHOLE})
    assert any(problem in one for one in problems), problems


def test_strict_check_reports_a_missing_output_schema() -> None:
    assert problems_of({"name": "t", "inputSchema": WHOLE}) == ["t has no outputSchema"]
