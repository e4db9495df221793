"""Serves one client over stdin and stdout; logs go to stderr."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import Any, cast

from mcp.server.context import CallNext, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.server.stdio import stdio_server

from memory_core.settings.settings import Settings
from memory_server.mcp.server import build_server
from memory_server.mcp.stdio_lines import Lines, claim_stdin
from memory_server.runtime import Runtime

_PATIENCE_SECONDS = 1.0
"""If no request comes within this time, the rest of the server starts anyway."""


_STOPPING = (signal.SIGTERM, signal.SIGINT)


async def serve_stdio(settings: Settings) -> None:
    """Serve until the client closes stdin or sends a signal. Then end the client's session and the services.

    A thread may still read stdin, and no signal ends that read. So the process ends by the signal that it got.
    """
    runtime = Runtime(settings)
    if settings.agent is not None:
        runtime.presence.stdio_caller = settings.namespace, settings.agent
    server = build_server(runtime)

    async def notice_first_answer(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> Any:
        result = await call_next(ctx)
        runtime.answered()
        return result

    server.middleware.append(notice_first_answer)
    stopped = _stop_signal()
    async with runtime.running(patience=_PATIENCE_SECONDS):
        checking = asyncio.create_task(_check_token(runtime))
        serving = asyncio.create_task(_run(server, Lines(claim_stdin(), settings.limits.body_bytes)))
        try:
            await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            checking.cancel()
            serving.cancel()
    if stopped.done():
        os.kill(os.getpid(), stopped.result())
    await serving


def _stop_signal() -> asyncio.Future[int]:
    """A future with the first signal to stop. Further signals end the process immediately."""
    loop = asyncio.get_running_loop()
    stopped = loop.create_future()

    def stop(number: int) -> None:
        for other in _STOPPING:
            loop.remove_signal_handler(other)
            signal.signal(other, signal.SIG_DFL)
        stopped.set_result(number)

    with suppress(NotImplementedError):  # Windows
        for number in _STOPPING:
            loop.add_signal_handler(number, stop, number)
    return stopped


async def _run(server: MCPServer[Any], lines: Lines) -> None:
    """Run as the SDK's `run_stdio_async`, with a stricter reader."""
    low = server._lowlevel_server  # pyright: ignore[reportPrivateUsage] - the SDK has no public way to change the reader
    async with stdio_server(stdin=cast(Any, lines)) as (read, write):
        lines.answer = write.send
        await low.run(read, write, low.create_initialization_options())


async def _check_token(runtime: Runtime) -> None:
    """Warn at start if the token is not valid: every call will be refused."""
    if runtime.settings.token is not None:
        await runtime.until_first_answer()
        await runtime.gate.warn_of_bad_token()
