"""How fast the dashboard opens, and how smoothly its map moves: `python -m benchmarks.dashboard`.

Memories are copied directly into Redis, each with a supplied vector around one of forty centres, so no sidecar embeds
them. The browser is Chromium without a GPU, so the CPU draws the frames. Needs the extra `browser`. BENCH_MEMORIES and
BENCH_POINTS set the numbers.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import numpy as np
from playwright.async_api import Browser, Page, async_playwright

from benchmarks.serving import product, service_on
from memory_core.crypto.integrity import _message  # pyright: ignore[reportPrivateUsage] - what the Functions sign
from memory_core.crypto.keyring import new_key
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys, vector_field
from memory_core.records.memory import SIGNED_FIELDS
from memory_core.records.model import Model
from memory_core.records.names import SEPARATOR
from memory_core.records.scope import id_token
from memory_core.records.times import to_redis
from memory_core.records.vectors import normalise, to_stored
from memory_core.redis_client import Client
from memory_server.access.operator_login import admit_once
from memory_server.service import Service

MEMORIES = int(os.environ.get("BENCH_MEMORIES", "100000"))
POINTS = int(os.environ.get("BENCH_POINTS", "20000"))
AGENTS = 8
ROUNDS = 5
PAN_SECONDS = 5.0
NAMESPACE = "default"
_BATCH = 500
DIMENSION, MODEL = 384, "all-MiniLM-L6-v2"
_MIDDLES = 40
_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_FRAMES = """(seconds) => new Promise((done) => {
  const times = []; const end = performance.now() + seconds * 1000;
  const tick = (now) => { times.push(now); now < end ? requestAnimationFrame(tick) : done(times); };
  requestAnimationFrame(tick);
})"""
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


async def main() -> None:
    """Measure everything and print a table."""
    os.environ["MEMORY_MASTER_KEY"] = new_key()  # shared by the server and the copies made here
    with product() as served:
        page = served.url.removesuffix("mcp")
        async with service_on(served) as service, _browser() as browser:
            print(f"copying {MEMORIES} memories", flush=True)
            rows = [("memories", f"{MEMORIES:,}, written in {await _fill(served.url, service):.0f} s")]
            rows += await _api(page)
            for name, address in (("agent", f"{page}?agent=agent-0"), ("operator", page)):
                fresh = [f"#operator={await admit_once(service.backend, NAMESPACE)}" for _ in range(ROUNDS)]
                rows += await _opening(browser, name, address, fresh if name == "operator" else [""] * ROUNDS)
            rows += await _map(browser, page)
    print("\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]))


async def _fill(url: str, service: Service) -> float:
    """Fill the namespace with copies of one memory of each agent, with valid integrity codes; return the seconds.

    All are public, so that one map shows them, and were stored over the last thirty days.
    """
    began = time.perf_counter()
    async with httpx2.AsyncClient(timeout=120) as client:
        for agent in range(AGENTS):
            vector = [1.0] + [0.0] * (DIMENSION - 1)
            arguments = {
                "content": f"The pattern of agent {agent}.",
                "memory_type": "embedding",
                "visibility": "public",
            }
            await _call(client, url.removesuffix("mcp"), "store_memory", f"agent-{agent}", **arguments, vector=vector)
    loader = await Loader.of(service)
    for start in range(0, MEMORIES, _BATCH):
        await loader.copy(min(_BATCH, MEMORIES - start))
    return time.perf_counter() - began


class Loader:
    """Writes copies of memories directly into Redis, many at a time."""

    def __init__(self, service: Service, client: Client, patterns: list[dict[bytes, bytes]]) -> None:
        self._integrity = service.backend.integrity
        self._client = client
        self._patterns = patterns
        self._random = np.random.default_rng(7)
        self._middles = self._random.normal(size=(_MIDDLES, DIMENSION))
        self._keys = Keys(NAMESPACE)

    @classmethod
    async def of(cls, service: Service) -> Loader:
        """Use stored memories as templates."""
        client, keys = await service.backend.client(), Keys(NAMESPACE)
        names = [name async for name in client.scan_iter(match=f"{keys.memory_prefix}*")]
        return cls(service, client, [await client.hgetall(name) for name in names])

    async def copy(self, number: int) -> None:
        """Write this many copies."""
        pipe: Any = self._client.pipeline(transaction=False)
        for _ in range(number):
            agent = int(self._random.integers(len(self._patterns)))
            memory_id = new_id()
            pipe.hset(self._keys.memory(memory_id), mapping=self._made(self._patterns[agent], agent, memory_id))
        await pipe.execute()

    def _made(self, pattern: dict[bytes, bytes], agent: int, memory_id: str) -> dict[bytes, Any]:
        middle = self._middles[(agent * 3 + int(self._random.integers(_MIDDLES // 2))) % _MIDDLES]
        vector = normalise((middle + 0.7 * self._random.normal(size=DIMENSION))[None].astype(np.float32), DIMENSION)
        old = next(token for token in pattern[b"scope"].decode().split(SEPARATOR) if token.startswith("i:"))
        at = to_redis(time.time() - float(self._random.uniform(0, 30 * 86_400)))
        made: dict[bytes, Any] = {
            **pattern,
            b"scope": pattern[b"scope"].replace(old.encode(), id_token(memory_id).encode()),
            vector_field(MODEL).encode(): to_stored(vector[0], Model(MODEL, DIMENSION)),
            **dict.fromkeys((b"created_at", b"updated_at", b"occurred_at"), at.encode()),
        }
        row = {name: made.get(name.encode()) for name in SIGNED_FIELDS}
        seal = self._integrity.seal(NAMESPACE, memory_id, int(made[b"rev"]))
        assert seal is not None
        return made | {b"mac": _mac(seal, _message(row)).encode()}


def _mac(seal: dict[str, Any], message: bytes) -> str:
    """The code of a message, computed from the pads of HMAC-SHA-1 as the Functions do."""
    inner = hashlib.sha1(seal["inner"] + message, usedforsecurity=False).digest()
    return hashlib.sha1(seal["outer"] + inner, usedforsecurity=False).hexdigest()


async def _call(client: httpx2.AsyncClient, page: str, tool: str, agent: str, **arguments: Any) -> dict[str, Any]:
    headers = {"x-memory-dashboard": "1"}
    response = await client.post(f"{page}api/call/{tool}?agent={agent}", json=arguments, headers=headers)
    response.raise_for_status()
    return response.json()


async def _api(page: str) -> list[tuple[str, str]]:
    """Time the API calls of the first page and the map, uncached."""
    rows: list[tuple[str, str]] = []
    async with httpx2.AsyncClient(timeout=120) as client:
        for tool, arguments in (("dashboard_census", {}), ("dashboard_map", {"limit": POINTS})):
            for name in ("first", "again"):
                began = time.perf_counter()
                await _call(client, page, tool, "agent-0", **arguments)
                rows.append((f"{tool}, {name}", f"{time.perf_counter() - began:.2f} s"))
    return rows


async def _opening(browser: Browser, name: str, address: str, ends: list[str]) -> list[tuple[str, str]]:
    """Open the first page repeatedly with an empty cache."""
    painted: list[float] = []
    counted: list[float] = []
    for end in ends:
        async with _page(browser) as page:
            began = time.perf_counter()
            await page.goto(address + end)
            await page.locator(".stat").first.wait_for()
            counted.append(time.perf_counter() - began)
            painted.append(await page.evaluate(_PAINT) / 1000)
    return [
        (f"{name}: first contentful paint, median of {len(ends)} (worst)", _median(painted)),
        (f"{name}: figures shown, median (worst)", _median(counted)),
    ]


async def _map(browser: Browser, page_url: str) -> list[tuple[str, str]]:
    """Draw the map, drag it, zoom it and lasso half of it."""
    async with _page(browser) as page:
        began = time.perf_counter()
        await page.goto(f"{page_url}?agent=agent-0&live=0#/map")
        canvas = page.locator("[data-drawn]")
        await canvas.wait_for(timeout=120_000)
        drawn = time.perf_counter() - began
        points = await page.locator(".fill h2").inner_text()
        box = await canvas.bounding_box()
        assert box
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        await page.mouse.move(*middle)
        for _ in range(4):
            await page.mouse.wheel(0, -200)
        busy = await _processor_time(page)
        before = await busy()
        frames = asyncio.create_task(page.evaluate(_FRAMES, PAN_SECONDS))
        await page.mouse.down()
        ends, step = time.perf_counter() + PAN_SECONDS, 0
        while time.perf_counter() < ends:
            step += 1
            across, down = (step % 60) * 4 - 120, (step % 40) * 4 - 80
            await page.mouse.move(middle[0] + across, middle[1] + down)
        await page.mouse.up()
        gaps = np.diff(await frames)
        spent = (await busy() - before) / len(gaps)
        chosen = await _lasso(page, box)
    return [
        ("map", points),
        ("map: drawn after", f"{drawn:.2f} s"),
        ("map: frames a second while dragged", f"{1000 / gaps.mean():.0f}"),
        (
            "map: longest pause between two frames, 95 % of them",
            f"{gaps.max():.0f} ms, {np.percentile(gaps, 95):.0f} ms",
        ),
        ("map: the page's processor time for each of them", f"{1000 * spent:.0f} ms"),
        ("map: lasso around a part of it", chosen),
    ]


async def _processor_time(page: Page) -> Callable[[], Awaitable[float]]:
    """Let the browser count the CPU seconds of the page's thread, without waiting for a core."""
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable", {"timeDomain": "threadTicks"})

    async def so_far() -> float:
        metrics = (await session.send("Performance.getMetrics"))["metrics"]
        return next(one["value"] for one in metrics if one["name"] == "TaskDuration")

    return so_far


async def _lasso(page: Page, box: dict[str, float] | Any) -> str:
    await page.get_by_role("button", name="Lasso").click()
    corners = [(0.1, 0.2), (0.6, 0.2), (0.6, 0.9), (0.1, 0.9), (0.1, 0.2)]
    places = [(box["x"] + across * box["width"], box["y"] + down * box["height"]) for across, down in corners]
    await page.mouse.move(*places[0])
    await page.mouse.down()
    for place in places[1:]:
        await page.mouse.move(*place, steps=5)
    began = time.perf_counter()
    await page.mouse.up()
    selected = page.get_by_text(re.compile(r"^[\d,]+ chosen$"))
    await selected.wait_for()
    return f"{await selected.inner_text()}, after {time.perf_counter() - began:.2f} s"


def _median(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({max(seconds):.2f} s)"


@asynccontextmanager
async def _browser() -> AsyncGenerator[Browser]:
    async with async_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        yield await playwright.chromium.launch(executable_path=path, headless=True, args=_OPTIONS)


@asynccontextmanager
async def _page(browser: Browser) -> AsyncGenerator[Page]:
    context = await browser.new_context(viewport={"width": 1280, "height": 860})
    try:
        yield await context.new_page()
    finally:
        await context.close()


if __name__ == "__main__":
    asyncio.run(main())
