"""Starts, watches and ends the supervisor's child processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from memory_server.local.paths import open_log


class Children:
    """Child processes, watched by SIGCHLD. Needs a running loop in the main thread."""

    def __init__(self) -> None:
        self._child_ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._child_ended.set)

    def start(
        self, argv: Sequence[str | Path], log: Path, *, env: Mapping[str, str], inherit: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process with the environment `env` that writes to `log` and inherits a descriptor.

        Raises:
            OSError: it cannot be executed.
        """
        output = open_log(log)
        try:
            return subprocess.Popen(  # noqa: S603
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                pass_fds=() if inherit is None else (inherit,),
            )
        finally:
            os.close(output)

    async def exit_of(self, process: subprocess.Popen[bytes], within: float | None = None) -> int | None:
        """Wait until a process ends and return its exit code; None after `within` seconds."""
        deadline = float("inf") if within is None else time.monotonic() + within
        while (code := process.poll()) is None:
            left = min(1.0, deadline - time.monotonic())
            if left <= 0:
                return None
            self._child_ended.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._child_ended.wait()
        return code

    async def end(self, process: subprocess.Popen[bytes], *, patience: float, kill: bool) -> bool:
        """Send SIGTERM, wait `patience` seconds, then send SIGKILL if `kill`. Return whether it ended."""
        if process.poll() is None:
            process.terminate()
        if await self.exit_of(process, patience) is None and kill:
            process.kill()
            await self.exit_of(process)
        return process.poll() is not None


@dataclass
class Backoff:
    """Growing pauses between restarts. A run of `steady_after` seconds resets them."""

    first: float
    longest: float
    steady_after: float = 10.0
    _next: float = field(default=0.0, init=False)

    def after(self, lived: float) -> float:
        """Return the seconds to wait after a run of `lived` seconds."""
        if self._next == 0.0 or lived >= self.steady_after:
            self._next = self.first
        pause, self._next = self._next, min(self._next * 2, self.longest)
        return pause
