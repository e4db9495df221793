"""Starts, kills and pauses the processes of a chaos run. Forked from one that has all code loaded, each is up at once.

Run as a program it is that one: it reads commands as JSON lines and alone signals its children, so that no
number of a process that is gone can mean another.
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
    from .actors import Part

_TESTS = Path(__file__).parents[1]


class Troupe:
    """All processes of a run, by name."""

    def __init__(self, log: Path) -> None:
        paths = [str(_TESTS), *filter(None, sys.path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "chaos.troupe"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
            )

    def start(self, part: Part) -> None:
        """Start a process."""
        self._tell("start", part.name, asdict(part))

    def kill(self, name: str) -> None:
        """Take a process away without warning."""
        self._tell("kill", name)

    def pause(self, name: str) -> None:
        """Stop a process where it stands."""
        self._tell("pause", name)

    def resume(self, name: str) -> None:
        """Let it go on as if nothing had been."""
        self._tell("resume", name)

    def end(self) -> None:
        """Kill all."""
        self._process.communicate(timeout=30)

    def _tell(self, *command: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == b"ok\n"


def main() -> None:
    """Obey until the commands end; then kill whoever is left."""
    from . import actors

    children: dict[str, int] = {}
    for line in sys.stdin:
        command, name, *rest = json.loads(line)
        if command == "start":
            children[name] = _fork(actors.Part(**rest[0]))
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


def _fork(part: Part) -> int:
    from memory_server.operations import sweeper

    from . import actors

    child = os.fork()
    if child:
        return child
    os.close(0)
    sweeper.ROUND_SECONDS, sweeper.LEASE_SECONDS = 0.5, 2
    logging.disable(logging.WARNING)
    try:
        asyncio.run(actors.play(part))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
