"""Redis time of every Function in its worst case: `python -m benchmarks.functions [FUNCTION …]`.

Each case runs on one busy namespace of a separate embedded Redis: see `benchmarks/worst_cases`. Other processes share
the machine, so the fastest round says most about the Function.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from benchmarks import results
from benchmarks.tasks import redis_with
from benchmarks.worst_cases import memories, records, sharing, tasks, tidy, two_formats
from benchmarks.worst_cases.busy_namespace import CASES, BusyNamespace, Call, WorstCase, checked
from memory_core.records.codec import pack, unpack
from memory_core.store.functions import RELEASE

ROUNDS = 5
LIMIT_MS = 10.0
_OWN_COMMANDS = {"cmdstat_fcall", "cmdstat_config|resetstat"}
MODULES = (memories, records, sharing, tasks, tidy, two_formats)
"""They fill CASES, in this order: the last ones change the namespace."""


async def call_measured(team: BusyNamespace, function: str, call: Call) -> tuple[float, int, dict[str, Any]]:
    """Call a Function; return its milliseconds inside Redis, the number of its commands, and its answer."""
    request = pack({"prefix": team.keys.prefix, **call.request})
    await team.client.config_resetstat()
    answer = await team.client.execute_command("FCALL", function, len(call.keys), *call.keys, request)
    stats = await team.client.info("commandstats")
    commands = sum(stat["calls"] for name, stat in stats.items() if name not in _OWN_COMMANDS)
    return stats["cmdstat_fcall"]["usec"] / 1000, commands, {} if answer == RELEASE.encode() else unpack(answer)


async def measure(team: BusyNamespace, case: WorstCase, rounds: int = ROUNDS) -> dict[str, Any]:
    """Prepare and call a case some times; return its row. Times are milliseconds inside Redis."""
    spent, commands = list[float](), 0
    for _ in range(rounds):
        call = await case.prepare(team)
        milliseconds, commands, answer = await call_measured(team, case.function, call)
        spent.append(milliseconds)
        checked(call, answer)
    return {
        "Function": case.function,
        "worst case": case.case,
        "bounded by": case.bound,
        "fastest ms": round(min(spent), 2),
        "median ms": round(statistics.median(spent), 2),
        "slowest ms": round(max(spent), 2),
        "commands": commands,
    }


async def run(names: Sequence[str]) -> list[dict[str, Any]]:
    """Measure all cases, or those of the named Functions."""
    rows: list[dict[str, Any]] = []
    async with redis_with(0) as (client, _):
        team = BusyNamespace(client)
        await team.fill()
        for case in CASES:
            if not names or case.function in names:
                rows.append(await measure(team, case))
                print(*rows[-1].values(), sep=" | ", flush=True)
    return rows


def main() -> None:
    """Print the table, and save it under results/ if it is whole."""
    names = sys.argv[1:]
    rows = uvloop.run(run(names))
    if not names:
        results.save("functions", rows)
    results.show("Redis time of the Functions", rows)
    over = sorted({row["Function"] for row in rows if row["fastest ms"] > LIMIT_MS})
    print(f"above {LIMIT_MS:g} ms: {', '.join(over) or 'none'}")


if __name__ == "__main__":
    main()
