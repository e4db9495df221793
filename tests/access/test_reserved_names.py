"""No agent takes a name by which the audit means this product's own actors."""

from __future__ import annotations

import pytest
from support.auth_helpers import issued
from support.stack import Refused, Server, Stack
from support.stdio import stdio_agent

from memory_core.errors import InvalidArgument
from memory_core.records.names import RESERVED_AGENTS
from memory_server.engine.request_context import Caller, check_writes_as


@pytest.mark.parametrize("name", sorted(RESERVED_AGENTS))
async def test_reserved_name_is_refused_over_http(server: Server, namespace: str, name: str) -> None:
    async with server.agent(name, namespace) as agent:
        for tool in ("memory_stats", "register_agent"):
            with pytest.raises(Refused, match="reserved"):
                await agent.call(tool)


@pytest.mark.parametrize("name", sorted(RESERVED_AGENTS))
async def test_reserved_name_gets_no_token(server: Server, namespace: str, name: str) -> None:
    with pytest.raises(InvalidArgument, match="reserved"):
        await issued(server, name, namespace)


async def test_reserved_name_is_refused_on_stdio(stack: Stack, namespace: str) -> None:
    async with stdio_agent("console", REDIS_URL=stack.redis.url, MEMORY_NAMESPACE=namespace) as agent:
        answer = await agent.raw("memory_stats")
    assert "reserved" in str(answer.content)


@pytest.mark.parametrize("name", sorted(RESERVED_AGENTS))
def test_admin_cannot_act_for_a_reserved_name(name: str) -> None:
    with pytest.raises(InvalidArgument, match="reserved"):
        check_writes_as(Caller("team", "boss", admin=True), name)
