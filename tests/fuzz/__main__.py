"""Fuzzes all tools of a separate stack: `make fuzz`."""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from pathlib import Path

from support.stack import whole_stack

from .fuzzer import SETTINGS, Fuzzer, Report


def main() -> int:
    """Run the fuzzer; return 0 if it found no problems."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="time limit")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    print(f"fuzzing: {options.calls} calls from seed {options.seed}", flush=True)
    report = asyncio.run(_fuzz(options))
    print(report)
    if report.problems:
        print(f"FAILED; to repeat: PYTHONPATH=tests python -m fuzz --calls {options.calls} --seed {options.seed}")
    return 1 if report.problems else 0


async def _fuzz(options: argparse.Namespace) -> Report:
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
        async with whole_stack(Path(folder), **SETTINGS) as stack:
            await stack.client.config_set("appendfsync", "everysec")
            return await Fuzzer(stack.server, stack.client, options.seed).run(options.calls, options.minutes)


if __name__ == "__main__":
    raise SystemExit(main())
