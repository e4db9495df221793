"""Third-party clients as the scenario uses them: driven over lines, or the Inspector's CLI run once per call."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from support.node import NODE

HERE = Path(__file__).parent
INSPECTOR = HERE / "node_modules/@modelcontextprotocol/inspector/clients/cli/build/index.js"
ANSWER_SECONDS, LINE_BYTES, SHOWN = 40.0, 2**22, 600
_TOOL_ERROR = 5
"""Exit code of the Inspector's CLI when the tool returned an error. It still prints the answer."""


class PeerFailed(Exception):
    """The client, not the tool, failed."""


class Peer(Protocol):
    """A connected client."""

    async def ask(self, method: str, /, **arguments: Any) -> Any:
        """Call a method of line_protocol.ClientAdapter.

        Raises:
            PeerFailed: the client raised, or the server rejected the request.
        """
        ...


@dataclass(slots=True)
class LinePeer:
    """A client that stays connected."""

    process: Process

    async def ask(self, method: str, /, **arguments: Any) -> Any:
        """Send a request line and read the reply."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"method": method, **arguments}).encode() + b"\n")
        async with asyncio.timeout(ANSWER_SECONDS):
            line = await self.process.stdout.readline()
        if not line:
            raise PeerFailed(f"the client ended before it answered {method}")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerFailed(reply["error"][:SHOWN])
        return reply["result"]


@asynccontextmanager
async def connected(program: Sequence[str], url: str, command: Sequence[str], era: str) -> AsyncGenerator[LinePeer]:
    """Start a client that answers request lines. On failure its stderr is added to the error."""
    target = json.dumps({"url": url, "command": list(command), "era": era})
    with tempfile.TemporaryFile() as stderr:
        process = await asyncio.create_subprocess_exec(
            *program, target, stdin=PIPE, stdout=PIPE, stderr=stderr, limit=LINE_BYTES
        )
        try:
            yield LinePeer(process)
        except BaseException as error:
            stderr.seek(0)
            error.add_note(stderr.read().decode(errors="replace")[-SHOWN * 4 :])
            raise
        finally:
            await _ended(process)


async def _ended(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


@dataclass(slots=True)
class Inspector:
    """The Inspector's CLI. It reconnects for each call and checks answers against the output schemas."""

    url: str
    command: Sequence[str]
    era: str
    home: Path

    async def ask(self, method: str, /, **arguments: Any) -> Any:
        """Run the CLI."""
        match method:
            case "tools":
                return (await self._run("tools/list", "--strict"))["tools"]
            case "call":
                given = json.dumps(arguments["arguments"])
                result = await self._run("tools/call", "--tool-name", arguments["tool"], "--tool-args-json", given)
                text = result["content"][0]["text"]
                return {"error": result["isError"], "answer": result["structuredContent"], "text": text}
            case "templates":
                found = await self._run("resources/templates/list")
                return [template["uriTemplate"] for template in found["resourceTemplates"]]
            case "read":
                return (await self._run("resources/read", "--uri", arguments["uri"]))["contents"][0]["text"]
            case "prompts":
                return [prompt["name"] for prompt in (await self._run("prompts/list"))["prompts"]]
            case _:
                pairs = [f"{name}={value}" for name, value in arguments["arguments"].items()]
                named = ["--prompt-name", arguments["name"], "--prompt-args", *pairs]
                return (await self._run("prompts/get", *named))["messages"][0]["content"]["text"]

    async def _run(self, method: str, *options: str) -> dict[str, Any]:
        request = ["--format", "json", "--protocol-era", self.era, "--method", method, *options]
        process = await asyncio.create_subprocess_exec(
            *(str(NODE), str(INSPECTOR), *self._where(), *request, *self._server()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env={**os.environ, "HOME": str(self.home), "MCP_LOG_LEVEL": "error"},
        )
        async with asyncio.timeout(ANSWER_SECONDS):
            output, errors = await process.communicate()
        if process.returncode not in {0, _TOOL_ERROR}:
            raise PeerFailed(f"{method} ended with {process.returncode}: {errors.decode()[-SHOWN:]}")
        return json.loads(output)["result"]

    def _where(self) -> list[str]:
        return [] if self.command else ["--server-url", self.url]

    def _server(self) -> list[str]:
        if not self.command:
            return []
        paths = os.environ.get("PYTHONPATH")
        return [*(["-e", f"PYTHONPATH={paths}"] if paths else []), "--", *self.command]
