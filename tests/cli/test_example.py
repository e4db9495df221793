"""The example: a team finishes its work after one agent is killed."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "team.py"
VICTIMS_TASK = "Write the command line that prints dates"


@pytest.mark.long
async def test_example_team_completes_all_tasks_after_an_agent_is_killed() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    process = await asyncio.create_subprocess_exec(sys.executable, str(EXAMPLE), stdout=PIPE, env=environment)
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
    lines = [line.split("s  ", 1)[-1] for line in said.decode().splitlines()]
    killed = lines.index(f"team     kill -9 coder, while it holds the lease of “{VICTIMS_TASK}”")
    taken = lines.index(f"reviewer took “{VICTIMS_TASK}”, attempt 1")
    completed = lines.index(f"reviewer completed “{VICTIMS_TASK}”")
    assert killed < taken < completed
    assert lines[taken + 1].split() == "reviewer steps done before: read the arguments".split()
    assert "7 of 7 tasks completed; coder was killed and reviewer took its task over." in lines
    assert process.returncode == 0
