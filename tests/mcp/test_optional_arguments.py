"""Clients fill in optional arguments that they have no value for; names come as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from support.stack import Agent, Server

from memory_core.errors import InvalidArgument
from memory_core.records.names import canonical_name
from memory_core.settings.settings import Settings
from memory_server.mcp.prompts import drop_blank
from memory_server.mcp.server import tool_groups
from memory_server.mcp.tools.tool_factory import StrictTool
from memory_server.runtime import Runtime

REQUIRED: dict[str, Any] = {"operations": [{"op": "gpu_status"}], "memory_ids": ["m"]}
MEANS_EMPTY = {("update_memory", "content"), ("update_memory", "context")}


async def _tools() -> dict[str, StrictTool]:
    groups = tool_groups(Runtime(Settings.model_construct()))
    return {tool.name: tool for tools in groups.values() for tool in tools}


async def test_blank_counts_as_absent_for_every_optional_argument() -> None:
    refused, tried = list[Any](), 0
    for tool in (await _tools()).values():
        fields = tool.arguments.model_fields
        needed = {name: REQUIRED.get(name, "x") for name, field in fields.items() if field.is_required()}
        plain = tool.arguments.model_validate(needed)
        for name in fields.keys() - needed.keys():
            for blank in (None, "", [None], [""]):
                if isinstance(blank, list) and name in tool.arguments.whole_lists:
                    continue
                if blank == "" and (tool.name, name) in MEANS_EMPTY:
                    continue
                tried += 1
                try:
                    same = tool.arguments.model_validate({**needed, name: blank}) == plain
                except ValidationError:
                    same = False
                if not same:
                    refused.append((tool.name, name, blank))
    assert tried > 400
    assert refused == []


async def test_null_is_still_refused_for_required_arguments() -> None:
    for tool in (await _tools()).values():
        for name, field in tool.arguments.model_fields.items():
            if field.is_required():
                with pytest.raises(ValidationError):
                    tool.arguments.model_validate({name: None})


async def test_blanks_are_absent_in_calls_and_in_a_batch(alice: Agent) -> None:
    tools = {tool.name: tool.input_schema for tool in (await alice.client.list_tools()).tools}
    needed = {
        "store_memory": {"content": "Lanterns burn on the pier."}, "semantic_search": {"query": "pier"},
        "get_agent_memories": {}, "register_agent": {}, "list_agents": {}, "list_tasks": {}, "get_shared_context": {},
        "distribute_task": {"description": "Paint the pier."}, "get_pending_tasks": {}, "memory_stats": {},
    }  # fmt: skip
    for blank in (None, ""):
        calls = {name: dict.fromkeys(tools[name]["properties"], blank) | given for name, given in needed.items()}
        for name, arguments in calls.items():
            await alice.call(name, **arguments)
        operations = [{"op": name, **arguments} for name, arguments in calls.items()]
        answer = await alice.call("batch_operations", operations=operations, stop_on_error=blank)
        assert [one for one in answer["results"] if not one["ok"]] == []


async def test_values_in_other_forms_are_accepted(alice: Agent) -> None:
    await alice.store("Nets dry on the quay.", tags=["quay", None, ""])
    for given in ({"limit": "3"}, {"limit": 3.0}, {"rerank": "true"}, {"tags": '["quay"]'}, {"limit": "null"},
                  {"tags": ["quay", None]}, {"mode": "None"}, {"since": "null"}, {"min_score": "0"}):  # fmt: skip
        assert await alice.search("nets on the quay", **given), given


async def test_empty_text_keeps_its_meaning_in_an_update(alice: Agent) -> None:
    memory_id = await alice.store("The tide turns at six.", context="tides", tags=["tide"])
    assert (await alice.raw("update_memory", memory_id=memory_id, content="")).is_error
    changed = await alice.call("update_memory", memory_id=memory_id, context="", tags="", metadata="", priority="")
    assert "context" not in changed["memory"]
    assert changed["memory"]["tags"] == ["tide"]


def test_prompt_arguments_that_are_blank_are_left_out() -> None:
    assert drop_blank({"task": "x", "summary": None}) == {"task": "x"}


@pytest.mark.parametrize(
    ("given", "name"),
    [("Claude Code", "claude-code"), (" GPT  5 ", "gpt-5"), ("a_b.c-d", "a_b.c-d"), ("\u212aelvin", "kelvin")],
)
def test_names_become_canonical(given: str, name: str) -> None:
    assert canonical_name(given) == name


@pytest.mark.parametrize("given", ["Клод", "小明", "a*b", "a\nb", "a:b", "", " ", "x" * 65, "José Клод", "\ud83d"])
def test_names_of_other_characters_are_refused(given: str) -> None:
    with pytest.raises(InvalidArgument):
        canonical_name(given)


@pytest.mark.parametrize(
    "given",
    [
        "straße",
        "STRAẞE",
        "Ⅰ",
        "ﬁn",
        "İda",
        "ıda",
        "ＡＢＣ",
        "Zoë",
        "Zoe\u0308",
        "ΣΑΣ",
        "ς",
        "각",
        "\u1100\u1161",
        "a\u3000b",
        "x²",
    ],
)
def test_no_two_names_become_one_but_for_case_and_spaces(given: str) -> None:
    with pytest.raises(InvalidArgument):
        canonical_name(given)


async def test_agent_names_are_accepted_as_people_write_them(server: Server, namespace: str) -> None:
    async with server.agent("Claude Code", namespace.upper()) as claude, server.agent("bob", namespace) as bob:
        answer = await claude.raw("register_agent", agent_id="CLAUDE CODE")
        assert 'agent "Claude Code" is claude-code' in answer.content[0].text  # type: ignore[union-attr]
        assert answer.structured_content is not None
        assert answer.structured_content["agent"]["agent_id"] == "claude-code"
        memory_id = await claude.store("The ferry leaves at nine.", visibility="public")
        found = await bob.call("semantic_search", query="ferry", agent_ids=["Claude Code"])
        assert [hit["memory"]["memory_id"] for hit in found["hits"]] == [memory_id]
        shared = await bob.call("share_context_with_agent", target_agent="Claude Code", tags=["t"])
        assert shared["target_agent"] == "claude-code"
        assert shared["names"] == 'agent "Claude Code" is claude-code'
        await bob.call("distribute_task", description="Mend the ferry.", assign_to="Claude Code")
        assert "names" not in await bob.call("list_agents")


def test_stdio_names_become_canonical_unless_a_token_names_them() -> None:
    settings = Settings.load(agent="Claude Code", namespace="My Team")
    assert (settings.agent, settings.namespace) == ("claude-code", "my-team")
    assert settings.given_names["agent"] == "Claude Code"
    with pytest.raises(InvalidArgument):
        Settings.load(agent="Claude Code", token="t")
