"""What a model sees of the server is short, fits its set of tools, and says which tool to use when."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from mcp import Client
from support.situations import ANY_TEXT, problems, situations
from support.stack import Agent, Refused, Server

from memory_core.settings.choices import ToolSet
from memory_server.contract.arguments import Filters
from memory_server.mcp.listing import INSTRUCTIONS
from memory_server.mcp.tools_reference import all_tools, seen_by_models

SETS: tuple[ToolSet, ...] = get_args(ToolSet)
CHARACTERS_PER_TOKEN = 4
"""The estimate behind `max_tokens`."""
MOST_TOKENS: dict[ToolSet, int] = {"memory": 1900, "team": 4500, "all": 4500}


SEEN = {tools: seen_by_models(tools) for tools in SETS}
TOOLS = all_tools()


def _listed(tools: ToolSet) -> list[dict[str, Any]]:
    return [json.loads(line) for line in SEEN[tools].splitlines() if line.startswith("{")]


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for one in schema.values():
            yield from _nodes(one)


@pytest.mark.parametrize("tools", SETS)
def test_a_list_of_tools_stays_within_its_tokens(tools: ToolSet) -> None:
    lines = [line for line in SEEN[tools].splitlines() if line.startswith("{")]
    assert len("\n".join(lines)) / CHARACTERS_PER_TOKEN <= MOST_TOKENS[tools]


@pytest.mark.parametrize("tools", SETS)
def test_instructions_name_only_listed_tools_in_under_120_words(tools: ToolSet) -> None:
    instructions, names = INSTRUCTIONS[tools], {tool["name"] for tool in _listed(tools)}
    assert SEEN[tools].startswith(instructions)
    assert len(instructions.split()) < 120
    named = {tool.name for tool in TOOLS if tool.name in instructions}
    assert {"semantic_search", "store_memory"} <= named <= names
    for word in ("visibility=public", "priority=critical", "data"):
        assert word in instructions
    tasks = {"register_agent", "get_pending_tasks", "complete_task", "distribute_task"}
    assert (tasks <= named) == (tools != "memory")


def test_each_set_holds_the_smaller_one() -> None:
    memory, team, everything = ({tool["name"] for tool in _listed(tools)} for tools in ("memory", "team", "all"))
    assert memory < team < everything == {tool.name for tool in TOOLS}
    assert "get_pending_tasks" in team - memory


def test_descriptions_have_no_indents_titles_or_repeated_names() -> None:
    for tool in _listed("all"):
        description = tool["description"]
        assert not re.search(r"\s{2}|\n", description), description
        assert tool["name"] not in description
        assert not any(isinstance(node.get("title"), str) for node in _nodes(tool["inputSchema"]))
        for name, argument in tool["inputSchema"]["properties"].items():
            assert argument.get("description", "").lower() != name.replace("_", " ")


def test_filters_are_described_once() -> None:
    described = {
        tool["name"]
        for tool in _listed("all")
        if set(Filters.model_fields) <= set(tool["inputSchema"]["properties"])
        and any("description" in tool["inputSchema"]["properties"][name] for name in ("agent_ids", "since"))
    }
    assert described == {"semantic_search"}


def test_each_accepted_argument_is_published() -> None:
    for tool in TOOLS:
        assert set(tool.parameters["properties"]) == set(tool.arguments.model_fields)
        assert set(tool.parameters.get("required", [])) == {
            name for name, field in tool.arguments.model_fields.items() if field.is_required()
        }


@pytest.mark.parametrize("era", ["legacy", "auto"])
async def test_a_connection_lists_the_tools_of_its_url(server: Server, namespace: str, era: Any) -> None:
    url = f"{server.url}/mcp?agent=alice&namespace={namespace}&tools=memory"
    async with Client(url, mode=era) as client:
        assert client.instructions == INSTRUCTIONS["memory"]
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert names == {tool["name"] for tool in _listed("memory")}
        unlisted = await Agent(client).call("list_agents")
        assert unlisted["agents"] == [], "a tool that is not listed can be called"


async def test_numbers_are_still_accepted_as_times(alice: Agent) -> None:
    await alice.store("The gate is blue.", occurred_at=1_700_000_000)
    assert await alice.search("gate", since=1_600_000_000.5, until="1700000001") == ["The gate is blue."]


async def test_bounds_that_are_not_published_still_hold(alice: Agent) -> None:
    with pytest.raises(Refused, match="limit"):
        await alice.call("semantic_search", query="gate", limit=0)


def _right_answer(situation: dict[str, Any]) -> dict[str, Any]:
    given = {name: "some text" if value == ANY_TEXT else value for name, value in situation["arguments"].items()}
    return {"tool": situation["tools"][0], "arguments": given}


def test_thirty_situations_have_answers_that_the_tools_accept() -> None:
    assert [one["id"] for one in situations()] == list(range(1, 31))
    right = {str(one["id"]): _right_answer(one) for one in situations()}
    assert list(problems(right)) == []
    assert {one["tools"][0] for one in situations()} <= {tool["name"] for tool in _listed("team")}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "No answer"),
        ({"tool": "semantic_search", "arguments": {"query": "x"}}, "Tool semantic_search instead of store_memory"),
        ({"tool": "store_memory", "arguments": {"content": "x"}}, "Argument visibility is None instead of 'public'"),
        (
            {"tool": "store_memory", "arguments": {"content": "x", "visibility": "public", "tag": "y"}},
            "refuses the arguments",
        ),
    ],
)
def test_wrong_answers_to_situations_are_found(answer: Any, problem: str) -> None:
    right = {str(one["id"]): _right_answer(one) for one in situations()}
    (found,) = problems(right | {"1": answer})
    assert problem in found
