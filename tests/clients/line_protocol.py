"""Drives a third-party client over lines of JSON, so that one scenario serves all clients.

A request line has the `method` and its arguments; the answer has the `result`, or the client's own exception as
`error`. Needs only the standard library: it runs in the clients' environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any, Protocol


class ClientAdapter(Protocol):
    """What the adapter of a client offers. Contents are unchanged from the wire."""

    async def version(self) -> str:
        """The negotiated protocol version."""
        ...

    async def tools(self) -> list[dict[str, Any]]:
        """The name and both schemas of each tool."""
        ...

    async def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Call a tool; return `error`, `answer` and `text`."""
        ...

    async def templates(self) -> list[str]:
        """The resource templates."""
        ...

    async def read(self, uri: str) -> str:
        """The text of a resource."""
        ...

    async def prompts(self) -> list[str]:
        """The names of the prompts."""
        ...

    async def prompt(self, name: str, arguments: dict[str, str]) -> str:
        """The text of a prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect: a server's URL, or the command that starts one on stdio."""

    url: str
    command: list[str]
    era: str

    @classmethod
    def from_argument(cls) -> Target:
        """Read the program's argument."""
        return cls(**json.loads(sys.argv[1]))

    def environment(self) -> dict[str, str]:
        """The environment variables that a stdio server needs."""
        return {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}


async def answer_lines(client: ClientAdapter) -> None:
    """Answer request lines until the input ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        request: dict[str, Any] = json.loads(line)
        try:
            reply = {"result": await getattr(client, request.pop("method"))(**request)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)
