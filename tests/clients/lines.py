"""Lets a client of somebody else be asked in lines of JSON, so that one tour is taken through all of them.

A line says what to `do` and with which arguments; a line comes back, with what it gave under `gave` or, where the
client itself raised, with the error under `failed`. Needs nothing but Python: it runs in the clients' environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any, Protocol


class AskedInLines(Protocol):
    """What an adapter of a client offers; contents are as they went over the wire."""

    async def version(self) -> str:
        """Give the protocol version that was agreed on."""
        ...

    async def tools(self) -> list[dict[str, Any]]:
        """Give the name and both schemas of each tool."""
        ...

    async def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Call a tool; give `error`, `answer` and `text`."""
        ...

    async def templates(self) -> list[str]:
        """Give the templates of resources."""
        ...

    async def read(self, uri: str) -> str:
        """Give the text of a resource."""
        ...

    async def prompts(self) -> list[str]:
        """Give the names of the prompts."""
        ...

    async def prompt(self, name: str, arguments: dict[str, str]) -> str:
        """Give the text of a prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect: the URL of a server, or the command that starts one on stdio."""

    url: str
    command: list[str]
    era: str

    @classmethod
    def given(cls) -> Target:
        """Read the program's argument."""
        return cls(**json.loads(sys.argv[1]))

    def environment(self) -> dict[str, str]:
        """Give what a server on stdio needs of this process's environment."""
        return {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}


async def answer_lines(client: AskedInLines) -> None:
    """Answer until no more lines come."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked: dict[str, Any] = json.loads(line)
        try:
            said = {"gave": await getattr(client, asked.pop("do"))(**asked)}
        except Exception as error:
            said = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), flush=True)
