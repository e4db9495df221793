"""A short run of random and hostile calls of all tools; `make fuzz` makes a hundred thousand."""

from __future__ import annotations

import random

from fuzz.calls import Calls
from fuzz.fuzzer import SETTINGS, Fuzzer
from support.in_process import InProcess
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Stack, serving

CALLS = 1500
SEED = 5  # its calls include conflicts


async def test_random_calls_are_answered_and_change_nothing_of_others(stack: Stack) -> None:
    # The same key as the stack's server: both servers sweep, and either may write audit entries here.
    async with serving(stack.redis.url_of(SERVER), **SETTINGS, master_key=MASTER_KEY) as server:
        report = await Fuzzer(server, stack.client, SEED).run(CALLS)
        tools = await InProcess.over(server).tools.list_tools()
    assert not report.problems, str(report)
    assert report.calls >= CALLS
    assert set(report.tools) == {tool.name for tool in tools}
    assert report.outcomes["ok"] > CALLS / 10
    assert {"invalid_argument", "not_found", "forbidden", "conflict"} <= set(report.outcomes)


async def test_same_seed_makes_the_same_calls(stack: Stack) -> None:
    tools = await InProcess.over(stack.server).tools.list_tools()
    one, again, other = [Calls(tools, random.Random(seed)) for seed in (1, 1, 2)]
    made, repeated, different = [[repr(calls.make()) for _ in range(50)] for calls in (one, again, other)]
    assert made == repeated
    assert made != different
