"""Measures a failover and a slot move on three masters and three replicas, for docs/scaling.md.

`python tests/support/cluster_figures.py [ROUNDS] [MEMORIES]`
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from support.cluster import MASTERS, NODE_TIMEOUT_MS, Node, RedisCluster, cluster_stack
from support.stack import Agent, Refused, Stack

NAMESPACE = "team-0"
_AT_ONCE = 200


async def failover(stack: Stack, cluster: RedisCluster, *, freeze: bool) -> tuple[float, float]:
    """Kill or freeze a master; return the seconds until its namespace stores again and the slowest search elsewhere."""
    lost, slowest, other = await cluster.master_of(NAMESPACE), 0.0, "team-1"
    while await cluster.master_of(other) is lost:
        other += "1"
    async with (
        stack.server.agent("alice", NAMESPACE) as alice,
        stack.server.agent("alice", other) as elsewhere,
    ):
        await alice.store("before", wait=False)
        await elsewhere.store("before", wait=False)
        lost.freeze() if freeze else lost.kill()
        began, storing = time.perf_counter(), asyncio.create_task(_until_stored(alice))
        while not storing.done():
            asked = time.perf_counter()
            await elsewhere.call("semantic_search", query="before", mode="keyword")
            slowest = max(slowest, time.perf_counter() - asked)
            await asyncio.sleep(0.01)
        taken = await storing - began
    lost.thaw() if freeze else lost.start()
    await cluster.until_replicated()
    return taken, slowest


async def _until_stored(agent: Agent) -> float:
    while True:
        try:
            await agent.store("after", wait=False)
        except Refused:
            continue
        return time.perf_counter()


async def move(stack: Stack, cluster: RedisCluster, memories: int) -> tuple[float, float]:
    """Move a namespace; return the seconds of the move, and from its end until answers are complete."""
    namespace = "moved"
    async with stack.server.agent("alice", namespace) as alice:
        for start in range(0, memories, _AT_ONCE):
            operations = [
                {"op": "store_memory", "content": f"boat number {number} lies in the harbour", "wait": False}
                for number in range(start, min(start + _AT_ONCE, memories))
            ]
            await alice.call("batch_operations", operations=operations)
        while (await alice.call("semantic_search", query="boat", mode="hybrid", limit=1)).get("partial"):
            await asyncio.sleep(0.2)
        source = await cluster.master_of(namespace)
        target: Node = next(node for node in cluster.nodes[:MASTERS] if node is not source)
        began = time.perf_counter()
        await cluster.move(namespace, target)
        moved = time.perf_counter()
        while not await _is_whole(alice):
            await asyncio.sleep(0.01)
        return moved - began, time.perf_counter() - moved


async def _is_whole(agent: Agent) -> bool:
    try:
        return not (await agent.call("semantic_search", query="boat", mode="hybrid", limit=1)).get("partial")
    except Refused:
        return False


async def main(rounds: int, memories: int) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="redis-memory-cluster-") as folder:
        async with cluster_stack(Path(folder)) as stack:
            cluster = stack.redis
            assert isinstance(cluster, RedisCluster)
            print(f"cluster-node-timeout {NODE_TIMEOUT_MS} ms")
            moved, rebuilt = await move(stack, cluster, memories)
            print(f"{memories} memories: moved in {moved:.1f} s, index whole again {rebuilt:.1f} s later")
            for freeze in (False, True):
                found = sorted([await failover(stack, cluster, freeze=freeze) for _ in range(rounds)])
                results = [f"{taken:.1f} s (elsewhere at most {slowest * 1000:.0f} ms)" for taken, slowest in found]
                print(f"{'frozen' if freeze else 'killed'} master: {', '.join(results)}")


if __name__ == "__main__":
    asyncio.run(main(*[int(word) for word in (*sys.argv[1:], *("5", "2000")[len(sys.argv) - 1 :])]))
