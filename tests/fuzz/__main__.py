"""Lets a storm of calls loose on a whole stack of its own: `make fuzz`."""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from pathlib import Path

from support.stack import whole_stack

from .storm import SETTINGS, Report, Storm


def main() -> int:
    """Run it; 0 if every call was answered as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="the longest that it may take")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    print(f"storm: {options.calls} calls from seed {options.seed}", flush=True)
    report = asyncio.run(_storm(options))
    print(report)
    if report.problems:
        print(f"FAILED; again: PYTHONPATH=tests python -m fuzz --calls {options.calls} --seed {options.seed}")
    return 1 if report.problems else 0


async def _storm(options: argparse.Namespace) -> Report:
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
        async with whole_stack(Path(folder), **SETTINGS) as stack:
            await stack.client.config_set("appendfsync", "everysec")
            return await Storm(stack.server, stack.client, options.seed).blow(options.calls, options.minutes)


if __name__ == "__main__":
    raise SystemExit(main())
