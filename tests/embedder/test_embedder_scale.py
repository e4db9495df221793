"""Several sidecars share the streams. Each job is embedded once, also the jobs of a killed sidecar."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from threading import Barrier

from support import embedder_fixtures
from support.embedder_fixtures import PATIENCE, TEXTS, RedisServer, Team, running, wait_until

from memory_core.records import keys
from memory_core.records.vectors import Matrix
from memory_embedder.engines.encoder import Tokens
from memory_embedder.engines.fake import FakeEncoder
from memory_embedder.sidecar import SidecarOptions

server, client, team = embedder_fixtures.server, embedder_fixtures.client, embedder_fixtures.team
LEASE = 3.0
SHARING = SidecarOptions(lease=LEASE, scan=0.2, block=0.1)


class CountingEncoder(FakeEncoder):
    """Counts how often each text was embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.embedded: Counter[bytes] = Counter()

    def infer(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        self.embedded.update(row.tobytes() for row in tokens.rows)
        return super().infer(tokens, spare_core=spare_core)

    def of(self, texts: list[str]) -> Counter[bytes]:
        """How often these texts were embedded, without the warm-up."""
        rows = {row.tobytes() for row in self.tokenise(texts).rows}
        return Counter({row: number for row, number in self.embedded.items() if row in rows})


class SharingEncoder(CountingEncoder):
    """Waits with its first texts until all sidecars have some. Otherwise a fast one could take all the work."""

    def __init__(self, all_have_work: Barrier) -> None:
        super().__init__()
        self._all_have_work, self._has_work = all_have_work, False

    def infer(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        vectors = super().infer(tokens, spare_core=spare_core)
        if not self._has_work and self.of(TEXTS):
            self._has_work = True
            self._all_have_work.wait(PATIENCE)
        return vectors


async def test_three_sidecars_embed_each_job_once(server: RedisServer, team: Team) -> None:
    all_have_work = Barrier(3)
    encoders = [SharingEncoder(all_have_work) for _ in range(3)]
    async with AsyncExitStack() as sidecars:
        for encoder in encoders:
            await sidecars.enter_async_context(running(server.url, encoder, SHARING))
        ids = await team.store_many(TEXTS)
        await team.wait_for_vectors(ids)
        await team.wait_until_drained()
    shares = [encoder.of(TEXTS) for encoder in encoders]
    assert set(sum(shares, Counter()).values()) == {1}
    assert all(shares), "a sidecar had no jobs"


async def test_jobs_of_a_killed_sidecar_are_embedded_within_lease_plus_second(server: RedisServer, team: Team) -> None:
    ids = await team.store_many(TEXTS[:50])
    encoders = [CountingEncoder() for _ in range(2)]
    async with AsyncExitStack() as sidecars:
        await team.client.xreadgroup(keys.GROUP, "killed", {team.jobs: ">"})
        for encoder in encoders:
            await sidecars.enter_async_context(running(server.url, encoder, SHARING))
        await team.client.xclaim(
            team.jobs, keys.GROUP, "killed", 0, await _pending(team), idle=0, justid=True
        )  # the last activity of the killed sidecar

        async def is_done() -> bool:
            return await team.count_vectors(ids) == len(ids)

        await wait_until(is_done, LEASE + 1)
        await team.wait_until_drained()
    assert set(sum((encoder.of(TEXTS) for encoder in encoders), Counter()).values()) == {1}


async def _pending(team: Team) -> list[bytes]:
    return [item["message_id"] for item in await team.client.xpending_range(team.jobs, keys.GROUP, "-", "+", 99)]
