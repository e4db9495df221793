"""Runs inference, one micro-batch at a time. Asks go before jobs, so an ask waits for at most one micro-batch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memory_core.errors import MemoryServiceError
from memory_core.records.vectors import Matrix
from memory_embedder.engines.encoder import Encoder, TokenIds, Tokens, plan_batches
from memory_embedder.streams.asks import AskConsumer, TokenisedAsk
from memory_embedder.streams.jobs import JobConsumer
from memory_embedder.streams.throughput import Throughput

_log = logging.getLogger(__name__)
_CANARY = "A short text that every model can embed."
_WARM_UP = [" ".join([_CANARY] * 3)] * 16


class EncoderBroken(MemoryServiceError):
    """The engine fails on a harmless text too: the device is lost or the model is damaged."""

    code = "encoder_broken"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a text has no vector. Never contains the text."""

    reason: str


class InferenceLoop:
    """The only caller of the encoder's `infer` for asks and jobs."""

    def __init__(
        self,
        encoder: Encoder,
        asks: AskConsumer,
        jobs: JobConsumer,
        throughput: Throughput,
        work_arrived: asyncio.Event,
    ) -> None:
        self._encoder = encoder
        self._asks = asks
        self._jobs = jobs
        self._throughput = throughput
        self._work_arrived = work_arrived
        self.halvings = self.failures = 0

    async def warm_up(self) -> None:
        """Run the first, slow inferences before a caller waits, and measure the speed.

        Raises:
            EncoderBroken: inference fails.
        """
        tokens = await asyncio.to_thread(self._encoder.tokenise, _WARM_UP)
        try:
            await asyncio.to_thread(self._encoder.infer, tokens)
            started = time.perf_counter()
            await asyncio.to_thread(self._encoder.infer, tokens)
        except Exception as error:  # engines have no common error type
            raise _broken(error) from error
        self._throughput.tokens_per_second = sum(tokens.lengths) / max(time.perf_counter() - started, 1e-6)

    async def run(self, stopping: asyncio.Event, closed: asyncio.Event) -> None:
        """Work until `closed` is set. Starts no job after `stopping`; answers every ask that was read.

        A caller that sets either event must also set `work_arrived`.
        """
        while not closed.is_set():
            self._work_arrived.clear()
            if not await self._step(jobs_too=not stopping.is_set()):
                await self._work_arrived.wait()
        while self._asks:
            await self._answer(self._asks.pick())

    async def _step(self, *, jobs_too: bool) -> bool:
        if asks := self._asks.pick():
            await self._answer(asks)
            return True
        jobs = self._jobs.backlog.pick(self._throughput.budget) if jobs_too else []
        if not jobs:
            return False
        outcomes = await self._infer_each([job.row for job in jobs], spare_core=self._throughput.is_asked)
        done = list(zip(jobs, outcomes, strict=True))
        self._jobs.commit(
            [job for job, outcome in done if not isinstance(outcome, Failure)],
            [outcome for _, outcome in done if not isinstance(outcome, Failure)],
        )
        for job, outcome in done:
            if isinstance(outcome, Failure):
                self._jobs.fail(job, outcome.reason)
        return True

    async def _answer(self, asks: list[TokenisedAsk]) -> None:
        rows = [row for asked in asks for row in asked.tokens.rows]
        outcomes: list[Matrix | Failure] = [Failure("not embedded")] * len(rows)
        for positions in plan_batches([len(row) for row in rows], self._throughput.budget):
            found = await self._infer_each([rows[position] for position in positions])
            for position, outcome in zip(positions, found, strict=True):
                outcomes[position] = outcome
        start = 0
        for asked in asks:
            end = start + len(asked.tokens.rows)
            self._reply(asked, outcomes[start:end])
            start = end

    def _reply(self, asked: TokenisedAsk, outcomes: list[Matrix | Failure]) -> None:
        self._throughput.note_ask()
        failures = [outcome.reason for outcome in outcomes if isinstance(outcome, Failure)]
        if failures:
            self._asks.refuse(asked, f"embedding_failed: {failures[0]}")
            return
        vectors = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
        self._asks.answer(asked, np.stack(vectors))

    async def _infer_each(self, rows: Sequence[TokenIds], *, spare_core: bool = False) -> list[Matrix | Failure]:
        """Embed texts. If that fails, halve the batch until only texts that cannot be embedded fail."""
        tokens = Tokens(tuple(rows))
        started = time.perf_counter()
        try:
            vectors = await asyncio.to_thread(self._encoder.infer, tokens, spare_core=spare_core)
        except Exception as error:  # engines have no common error type
            if len(rows) == 1:
                return [await self._failure(error)]
            self.halvings += 1
            middle = len(rows) // 2
            halves = rows[:middle], rows[middle:]
            return [found for half in halves for found in await self._infer_each(half, spare_core=spare_core)]
        padded = len(rows) * max(tokens.lengths)
        self._throughput.learn(len(rows), padded, time.perf_counter() - started)
        return list(vectors)

    async def _failure(self, error: Exception) -> Failure:
        """Blame the text only if the engine still works. Otherwise every job would be buried, one after another.

        Raises:
            EncoderBroken: the engine does not work.
        """
        try:
            await asyncio.to_thread(lambda: self._encoder.infer(self._encoder.tokenise([_CANARY])))
        except Exception as broken:  # engines have no common error type
            raise _broken(broken) from broken
        self.failures += 1
        _log.warning("cannot embed a text: %s", type(error).__name__)
        return Failure(type(error).__name__)


def _broken(error: Exception) -> EncoderBroken:
    return EncoderBroken(
        f"the embedding engine fails on every text ({type(error).__name__})",
        hint="check the device with `redis-memory doctor`, then restart the sidecar",
    )
