"""Starts, kills and pauses the processes of a chaos run, by forking a process that has all code loaded.

Run as a program, it is that process: it reads commands as JSON lines and is the only one to signal its children, so
that a reused process id is never signalled.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .actors import ProcessSpec

_TESTS = Path(__file__).parents[1]


class Processes:
    """All processes of a run, by name."""

    def __init__(self, log: Path) -> None:
        paths = [str(_TESTS), *filter(None, sys.path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "chaos.processes"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
            )

    def start(self, spec: ProcessSpec) -> None:
        """Start a process."""
        self._send("start", spec.name, asdict(spec))

    def kill(self, name: str) -> None:
        """Kill a process without warning."""
        self._send("kill", name)

    def pause(self, name: str) -> None:
        """Stop a process with SIGSTOP."""
        self._send("pause", name)

    def resume(self, name: str) -> None:
        """Continue a paused process."""
        self._send("resume", name)

    def end(self) -> None:
        """Kill all."""
        self._process.communicate(timeout=30)

    def _send(self, *command: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == b"ok\n"


def main() -> None:
    """Execute commands until they end; then kill the remaining children."""
    from . import actors

    children: dict[str, int] = {}
    for line in sys.stdin:
        command, name, *rest = json.loads(line)
        if command == "start":
            children[name] = _fork(actors.ProcessSpec(**rest[0]))
        elif command == "kill":
            _kill(children.pop(name))
        else:
            os.kill(children[name], signal.SIGSTOP if command == "pause" else signal.SIGCONT)
        print("ok", flush=True)
    for child in children.values():
        _kill(child)


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _fork(spec: ProcessSpec) -> int:
    from memory_server.operations import sweeper

    from . import actors

    child = os.fork()
    if child:
        return child
    os.close(0)
    sweeper.ROUND_SECONDS, sweeper.LEASE_SECONDS = 0.5, 2
    logging.disable(logging.WARNING)
    try:
        asyncio.run(actors.run_process(spec))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
