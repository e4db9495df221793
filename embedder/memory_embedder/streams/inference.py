"""Runs inference: asks before jobs, one micro-batch at a time, so that an ask waits for at most one of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memory_core.errors import MemoryServiceError
from memory_core.vectors import Matrix
from memory_embedder.engines.encoder import Encoder, TokenIds, Tokens, plan_batches
from memory_embedder.streams.asks import AskDesk, Question
from memory_embedder.streams.jobs import JobDesk
from memory_embedder.streams.throughput import Load

_log = logging.getLogger(__name__)
_CANARY = "A short text that every model can embed."
_WARM_UP = [" ".join([_CANARY] * 3)] * 16


class EncoderBroken(MemoryServiceError):
    """The engine fails on a harmless text too: the device is gone, or the model is damaged."""

    code = "encoder_broken"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one text has no vector; never any of the text itself."""

    reason: str


class Engine:
    """The one user of the encoder's `infer`."""

    def __init__(self, encoder: Encoder, asks: AskDesk, jobs: JobDesk, load: Load, arrived: asyncio.Event) -> None:
        self._encoder = encoder
        self._asks = asks
        self._jobs = jobs
        self._load = load
        self._arrived = arrived
        self.halvings = self.failures = 0

    async def warm_up(self) -> None:
        """Do the first, slow inferences before anybody waits, and measure the speed.

        Raises:
            EncoderBroken: they fail.
        """
        tokens = await asyncio.to_thread(self._encoder.tokenise, _WARM_UP)
        try:
            await asyncio.to_thread(self._encoder.infer, tokens)
            started = time.perf_counter()
            await asyncio.to_thread(self._encoder.infer, tokens)
        except Exception as error:
            raise _broken(error) from error
        self._load.tokens_per_second = sum(tokens.lengths) / max(time.perf_counter() - started, 1e-6)

    async def run(self, stopping: asyncio.Event, closed: asyncio.Event) -> None:
        """Work until `closed`, begin no job after `stopping`, and leave no ask that was taken unanswered.

        Whoever sets either event sets `arrived` too.
        """
        while not closed.is_set():
            self._arrived.clear()
            if not await self._step(jobs_too=not stopping.is_set()):
                await self._arrived.wait()
        while self._asks:
            await self._answer(self._asks.pick())

    async def _step(self, *, jobs_too: bool) -> bool:
        if questions := self._asks.pick():
            await self._answer(questions)
            return True
        works = self._jobs.backlog.pick(self._load.budget) if jobs_too else []
        if not works:
            return False
        outcomes = await self._infer_each([work.row for work in works], sparing=self._load.is_asked)
        done = [(work, outcome) for work, outcome in zip(works, outcomes, strict=True)]
        self._jobs.commit(
            [work for work, outcome in done if not isinstance(outcome, Failure)],
            [outcome for _, outcome in done if not isinstance(outcome, Failure)],
        )
        for work, outcome in done:
            if isinstance(outcome, Failure):
                self._jobs.fail(work, outcome.reason)
        return True

    async def _answer(self, questions: list[Question]) -> None:
        rows = [row for question in questions for row in question.tokens.rows]
        outcomes: list[Matrix | Failure] = [Failure("not embedded")] * len(rows)
        for positions in plan_batches([len(row) for row in rows], self._load.budget):
            found = await self._infer_each([rows[position] for position in positions])
            for position, outcome in zip(positions, found, strict=True):
                outcomes[position] = outcome
        start = 0
        for question in questions:
            end = start + len(question.tokens.rows)
            self._settle(question, outcomes[start:end])
            start = end

    def _settle(self, question: Question, outcomes: list[Matrix | Failure]) -> None:
        self._load.note_ask()
        failures = [outcome.reason for outcome in outcomes if isinstance(outcome, Failure)]
        if failures:
            self._asks.refuse(question, f"embedding_failed: {failures[0]}")
            return
        vectors = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
        self._asks.answer(question, np.stack(vectors))

    async def _infer_each(self, rows: Sequence[TokenIds], *, sparing: bool = False) -> list[Matrix | Failure]:
        """Embed texts; if that fails, halve them until only those that cannot be embedded fail."""
        tokens = Tokens(tuple(rows))
        started = time.perf_counter()
        try:
            vectors = await asyncio.to_thread(self._encoder.infer, tokens, sparing=sparing)
        except Exception as error:  # whatever the engine raises
            if len(rows) == 1:
                return [await self._failure(error)]
            self.halvings += 1
            middle = len(rows) // 2
            halves = rows[:middle], rows[middle:]
            return [found for half in halves for found in await self._infer_each(half, sparing=sparing)]
        padded = len(rows) * max(tokens.lengths)
        self._load.learn(len(rows), padded, time.perf_counter() - started)
        return list(vectors)

    async def _failure(self, error: Exception) -> Failure:
        """Blame the text only if the engine still works: else every job would be buried in turn.

        Raises:
            EncoderBroken: it does not.
        """
        try:
            await asyncio.to_thread(lambda: self._encoder.infer(self._encoder.tokenise([_CANARY])))
        except Exception as broken:
            raise _broken(broken) from broken
        self.failures += 1
        _log.warning("a text cannot be embedded: %s", type(error).__name__)
        return Failure(type(error).__name__)


def _broken(error: Exception) -> EncoderBroken:
    return EncoderBroken(
        f"the embedding engine fails on every text ({type(error).__name__})",
        hint="look at the device with `redis-memory doctor`, then start the sidecar again",
    )
