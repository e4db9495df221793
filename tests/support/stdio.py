"""A stdio server process and an agent connected to it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from mcp import Client as McpClient
from mcp.client.stdio import StdioServerParameters, stdio_client

from support.stack import Agent

SEED = {
    "redis": {"host": "localhost", "port": 6379, "db": 0, "password": None},
    "gpu": {"enable_acceleration": True, "preferred_device": "auto", "fallback_to_cpu": True},
    "vector_store": {
        "embedding_model": "all-MiniLM-L6-v2",
        "vector_dimension": 384,
        "index_type": "IVFFlat",
        "rebuild_threshold": 1000,
    },
}


@asynccontextmanager
async def stdio_agent(agent: str, *options: str, **environment: str) -> AsyncGenerator[Agent]:
    """Start a stdio server for an agent, as Claude Code does."""
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "memory_server", "serve", "--stdio", "--agent", agent, *options],
        env={**os.environ, **environment},
    )
    with open(os.devnull, "w") as quiet:  # noqa: ASYNC230
        async with McpClient(stdio_client(parameters, errlog=quiet)) as client:
            yield Agent(client)
