"""A connection gets text, structure or both, and the list of tools fits what it gets."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.server.context import ServerRequestContext
from mcp_types import ElicitRequestParams, ElicitResult, Implementation
from support.stack import Agent, Server, text_of

from memory_core.errors import Overloaded
from memory_core.settings.settings import Settings
from memory_server.mcp.choices import Choices

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

Era = Literal["legacy", "2026-07-28"]
ERAS: tuple[Era, ...] = ("legacy", "2026-07-28")
CHAT_CLIENTS = ["claude-code", "Claude Code", "CODEX-MCP-CLIENT", "opencode", "claude-code (via mcp-remote 0.1.30)"]
OTHERS = ["claude-ai", "claude-code-open", "my-program"]


@asynccontextmanager
async def _connected(
    server: Server, namespace: str, query: str = "", era: Era = "2026-07-28", **options: Any
) -> AsyncGenerator[Agent]:
    url = f"{server.url}/mcp?agent=alice&namespace={namespace}{query}"
    async with Client(url, mode=era, **options) as client:
        yield Agent(client)


@pytest.mark.parametrize("era", ERAS)
async def test_text_connection_gets_text_and_no_output_schemas(server: Server, namespace: str, era: Era) -> None:
    async with _connected(server, namespace, "&answers=text", era) as agent:
        assert not any(tool.output_schema for tool in (await agent.client.list_tools()).tools)
        stored = await agent.raw("store_memory", content="The door is green.")
        assert stored.structured_content is None
        assert "Stored" in text_of(stored)
        refused = await agent.raw("store_memory", content="")
        assert refused.is_error
        assert refused.structured_content is None
        assert text_of(refused).startswith("invalid_argument: ")


@pytest.mark.parametrize("era", ERAS)
async def test_structured_connection_gets_no_text(server: Server, namespace: str, era: Era) -> None:
    async with _connected(server, namespace, "&answers=structured", era) as agent:
        assert all(tool.output_schema for tool in (await agent.client.list_tools()).tools)
        stored = await agent.raw("store_memory", content="The door is green.")
        assert stored.content == []
        assert (stored.structured_content or {})["memory_id"]
        refused = await agent.raw("store_memory", content="")
        assert (refused.structured_content or {})["error"]["code"] == "invalid_argument"
        assert text_of(refused).startswith("invalid_argument: "), "clients raise the text of an error"


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("name", [*CHAT_CLIENTS, *OTHERS])
async def test_chat_clients_get_text_by_their_name(server: Server, namespace: str, era: Era, name: str) -> None:
    async with _connected(server, namespace, "", era, client_info=Implementation(name=name, version="1")) as agent:
        result = await agent.raw("list_agents")
        assert (result.structured_content is None) == (name in CHAT_CLIENTS)
        assert result.content
        schemas = [tool.output_schema for tool in (await agent.client.list_tools()).tools]
        assert any(schemas) == (name not in CHAT_CLIENTS)


async def test_the_url_wins_over_the_client_name(server: Server, namespace: str) -> None:
    known = Implementation(name="claude-code", version="1")
    async with _connected(server, namespace, "&answers=Both", client_info=known) as agent:
        result = await agent.raw("list_agents")
        assert result.structured_content is not None
        assert result.content


@pytest.mark.parametrize("query", ["&answers=xml", "&tools=some"])
@pytest.mark.parametrize("era", ERAS)
async def test_unknown_choice_is_refused_with_the_allowed_ones(
    server: Server, namespace: str, era: Era, query: str
) -> None:
    with pytest.raises((MCPError, ExceptionGroup)) as caught:
        async with _connected(server, namespace, query, era) as agent:
            await agent.client.list_tools()
    allowed = "all, team, memory" if "tools" in query else "both, text, structured"
    assert allowed in "".join(map(str, _leaves(caught.value)))


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]


async def test_unknown_tool_is_refused_in_the_chosen_form(server: Server, namespace: str) -> None:
    async with _connected(server, namespace, "&answers=text") as agent:
        refused = await agent.raw("forget_it")
        assert refused.is_error
        assert refused.structured_content is None
        assert "not_found" in text_of(refused)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("form", ["text", "structured"])
async def test_a_question_to_the_person_works_in_each_form(server: Server, namespace: str, era: Era, form: str) -> None:
    asked = list[str]()

    async def accept(_: Any, params: ElicitRequestParams) -> ElicitResult:
        asked.append(params.message)
        return ElicitResult(action="accept", content={"delete": True})

    async with _connected(server, namespace, f"&answers={form}", era, elicitation_callback=accept) as agent:
        for number in range(2):
            await agent.raw("store_memory", content=f"Old note {number}.", tags=["old"])
        cleared = await agent.raw("clear_memory", tags=["old"])
    assert asked == ["Delete 2 memories permanently?"]
    shown = text_of(cleared) if form == "text" else str(cleared.structured_content)
    assert ("Deleted 2 memories." if form == "text" else "'deleted': 2") in shown


@pytest.mark.parametrize(
    ("settings", "client", "answers"),
    [
        ({}, "claude-code", "text"),
        ({}, None, "both"),
        ({"answers": "structured"}, "claude-code", "structured"),
        ({"answers": "text", "tools": "memory"}, "my-program", "text"),
    ],
)
def test_stdio_takes_the_settings_before_the_client_name(
    settings: dict[str, Any], client: str | None, answers: str
) -> None:
    params = client and SimpleNamespace(client_info=Implementation(name=client, version="1"))
    session: Any = SimpleNamespace(client_params=params)
    context: ServerRequestContext[Any, Any] = ServerRequestContext(
        session=session, lifespan_context={}, protocol_version="2025-11-25", method="tools/list"
    )
    chosen = Choices.of(context, Settings.load(**settings))
    assert (chosen.answers, chosen.tools) == (answers, settings.get("tools", "all"))


def test_text_of_a_refusal_says_when_to_retry() -> None:
    error = Overloaded("too many calls", hint="wait", retry_after=2.5)
    assert error.text() == "overloaded: too many calls (wait; retry after 2.5 s)"


async def test_prompts_and_resources_work_on_a_text_connection(server: Server, namespace: str) -> None:
    async with _connected(server, namespace, "&answers=text&tools=memory") as agent:
        stored = await agent.raw("store_memory", content="The door is green.")
        memory_id = text_of(stored).split()[1].strip("[]")
        assert "The door is green." in str(await agent.client.read_resource(f"memory://{memory_id}"))
        assert (await agent.client.list_prompts()).prompts
        batch = await agent.raw("batch_operations", operations=[{"op": "retrieve_memory", "memory_id": memory_id}])
        assert batch.structured_content is None
        assert "1 succeeded" in text_of(batch)


async def test_dashboard_calls_stay_structured(server: Server, namespace: str) -> None:
    async with httpx2.AsyncClient() as http:
        url = f"{server.url}/api/call/list_agents?agent=alice&namespace={namespace}&answers=text"
        answer = await http.post(url, json={}, headers={"X-Memory-Dashboard": "1"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["agents"] == []
