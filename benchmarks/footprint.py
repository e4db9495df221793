"""What a memory costs Redis: bytes, and CPU time until it is in the graph. docs/scaling.md uses these figures.

`python -m benchmarks.footprint [NUMBER]` fills a namespace of a separate product in steps.
"""

from __future__ import annotations

import asyncio
import sys

from benchmarks import results
from benchmarks.scale_constants import parts
from benchmarks.service import Texts, fill
from benchmarks.serving import Product, product
from memory_core.records.keys import Keys

_STEPS = 4
_NAMESPACE = "footprint"


async def _state(running: Product) -> dict[str, float]:
    """Redis's memory, its CPU time so far, and the bytes on disk."""
    async with running.redis() as client:
        memory, cpu = await client.info("memory"), await client.info("cpu")
    disk = sum(path.stat().st_size for path in running.data_dir.rglob("*") if path.is_file())
    seconds = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
    return {"bytes": int(memory["used_memory"]), "seconds": seconds, "disk": disk}


async def _composition(running: Product, size: int) -> dict[str, float]:
    """Bytes per memory of the keys of each kind, and of the parts of the index as FT.INFO counts them."""
    async with running.redis() as client:
        kinds = await parts(client, _NAMESPACE)
        info = await client.execute_command("FT.INFO", Keys(_NAMESPACE).index_alias)
    found = {kind: total / size for kind, total in kinds.most_common(6)}
    return found | {
        f"index: {part}": float(info[field]) * 2**20 / size
        for part, field in (("graph", b"vector_index_sz_mb"), ("other", b"total_index_memory_sz_mb"))
    }


async def measure(number: int) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Fill a namespace; return the cost per memory of each step, and the parts of the last state."""
    found: list[dict[str, float]] = []
    texts = Texts()
    with product() as running:
        await fill(running, _NAMESPACE, 1000, texts)  # fixed costs
        had, before = 1000, await _state(running)
        for step in range(1, _STEPS + 1):
            size = 1000 + number * step // _STEPS
            await fill(running, _NAMESPACE, size, texts)
            now = await _state(running)
            each = {name: (now[name] - before[name]) / (size - had) for name in now}
            found.append({"memories": size, **each})
            had, before = size, now
        return found, await _composition(running, had)


def main() -> None:
    """Print a table and save it under results/."""
    found, composition = asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000))
    results.save("footprint", {"steps": found, "composition": composition})
    results.show("what a memory of each step costs", found)
    results.show("bytes per memory by kind", [composition])


if __name__ == "__main__":
    main()
