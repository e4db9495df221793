"""Drives a sidecar's job consumer step by step on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from memory_core.crypto.sealing import Transports
from memory_core.records import keys
from memory_core.records.vectors import Matrix
from memory_core.store.streams import CLEAR
from memory_embedder.engines.encoder import TextKind, Tokens
from memory_embedder.engines.fake import FakeEncoder
from memory_embedder.streams.backlog import HeldJobs, TokenisedJob
from memory_embedder.streams.jobs import JobConsumer
from memory_embedder.streams.outbox import Action, GiveUp, Outbox
from memory_embedder.streams.throughput import Throughput
from support.embedder_fixtures import Team

LEASE_MS = 60_000
ME, OTHER = "me", "other"
BAD_WORD = "unspeakable"


class PausedOutbox(Outbox):
    """Keeps the actions until the test sends them."""

    def __init__(self) -> None:
        super().__init__("test", asyncio.Event())
        self.actions: list[Action] = []

    def put(self, action: Action, give_up: GiveUp | None = None) -> None:
        self.actions.append(action)

    async def send(self) -> int:
        """Run all queued actions. Returns their number."""
        actions, self.actions = self.actions, []
        for action in actions:
            await action()
        return len(actions)


class PickyEncoder(FakeEncoder):
    """Its tokenizer fails on BAD_WORD."""

    def tokenise(self, texts: list[str], kind: TextKind = "passage") -> Tokens:
        if any(BAD_WORD in text for text in texts):
            raise ValueError("cannot be split")
        return super().tokenise(texts, kind)


class Harness:
    """The JobConsumer of a sidecar named ME, and helpers around it."""

    def __init__(self, team: Team, transports: Transports = CLEAR) -> None:
        self.team, self.client, self.names = team, team.client, team.names
        self.encoder = PickyEncoder()
        self.held_jobs, self.outbox, self.work_arrived = HeldJobs(Throughput()), PausedOutbox(), asyncio.Event()
        self.jobs = JobConsumer(
            self.client, self.encoder, self.held_jobs, self.outbox, ME, self.work_arrived, transports
        )

    async def add_job(self, fields: Mapping[str, Any]) -> bytes:
        """Add a job to the stream."""
        return await self.client.xadd(self.team.jobs, dict(fields))

    async def deliver_to_other(self, deliveries: int, *, idle_ms: int = 2 * LEASE_MS) -> None:
        """Make all jobs pending at OTHER, with this delivery count and idle time."""
        await self.client.xreadgroup(keys.GROUP, OTHER, {self.team.jobs: ">"})
        await self.touch(OTHER, list(await self.pending()), idle=idle_ms, retrycount=deliveries)

    async def touch(self, consumer: str, entries: list[bytes], **state: Any) -> None:
        """Assign entries to a consumer, and set the XCLAIM options in `state`."""
        await self.client.xclaim(self.team.jobs, keys.GROUP, consumer, 0, entries, justid=True, **state)

    async def pending(self) -> dict[bytes, tuple[str, int, int]]:
        """For each pending job its consumer, idle time in milliseconds and delivery count."""
        found = await self.client.xpending_range(self.team.jobs, keys.GROUP, "-", "+", 10_000)
        return {
            item["message_id"]: (item["consumer"].decode(), item["time_since_delivered"], item["times_delivered"])
            for item in found
        }

    async def dead_letters(self) -> list[dict[bytes, bytes]]:
        """The buried jobs."""
        return [fields for _, fields in await self.client.xrange(self.names.dead_jobs)]

    def fill_up_to(self, texts: int) -> None:
        """Hold jobs of another namespace until there is room for this many texts."""
        while self.held_jobs.room() > texts:
            self.held_jobs.add("elsewhere", b"%d-1" % len(self.held_jobs), 8, 1)

    def pick_all(self) -> list[TokenisedJob]:
        """Take all jobs that wait for inference."""
        picked: list[TokenisedJob] = []
        while batch := self.jobs.backlog.pick(1 << 20):
            picked += batch
        return picked

    def vectors(self, picked: list[TokenisedJob]) -> list[Matrix]:
        """The vectors of jobs."""
        return list(self.encoder.infer(Tokens(tuple(taken.row for taken in picked))))


def job_fields(**other: Any) -> dict[str, Any]:
    """Fields of a job. Its memory does not exist."""
    whole = {"v": 1, "id": "m", "rev": 1, "hash": "h", "piece": 0, "model": "fake", "seal": "", "body": "a text"}
    return whole | other
