"""A stack that exports metrics, traces and logs, and helpers that read them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import httpx2
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families as parse

from memory_server.operations.stats import redis_stats as stock
from support.otlp import Collector, collecting
from support.ports import free_port
from support.stack import Stack, in_own_task, whole_stack

Samples = dict[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True, slots=True)
class Watched:
    """A stack that exports metrics and traces."""

    stack: Stack
    collector: Collector
    embedder_metrics: str


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Watched]:
    port, folder = free_port(), tmp_path_factory.mktemp("watched")
    with collecting() as (collector, url), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        stack = whole_stack(folder, "--metrics-port", str(port), embed_wait_seconds=15.0, observe={"traces": url})
        patch.setattr(stock, "KEEP_SECONDS", 0.0)
        async with in_own_task(stack) as running:
            for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_BSP_SCHEDULE_DELAY"):
                patch.delenv(name)  # other tests start servers at the same time
            yield Watched(running, collector, f"http://127.0.0.1:{port}/metrics")


async def get(url: str, **headers: str) -> httpx2.Response:
    async with httpx2.AsyncClient(headers=headers) as client:
        return await client.get(url)


async def samples(url: str) -> Samples:
    """Return the samples of a scrape by name."""
    found: Samples = {}
    for family in parse((await get(url)).text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(found: Samples, name: str, /, **labels: str) -> float:
    """Return one sample; 0 if it does not exist yet."""
    return sum(number for those, number in found.get(name, ()) if labels.items() <= those.items())
