"""Takes questions from the ask lanes and answers them: somebody waits, so they go before all jobs."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial

from memory_core import keys, redis_time, tracing
from memory_core.connection import Client
from memory_core.sealing import Transports
from memory_core.streams import Ask, BadMessage, Fields, Reply
from memory_core.vectors import Matrix, to_bytes
from memory_embedder.engines.encoder import Encoder, Tokens
from memory_embedder.streams import groups
from memory_embedder.streams.outbox import Outbox

_log = logging.getLogger(__name__)
MOST_TEXTS = 64
MOST_BYTES = 1 << 20
REPLIES_KEPT = 1000
REPLY_SECONDS = 60
_READ_AT_ONCE = 16
_MOST_WAITING = 64
"""More asks than this are left in the stream, where another sidecar can take them."""
_REPLY_PREFIX = keys.reply("")[:-1]


@dataclass(frozen=True, slots=True)
class Question:
    """An ask that can be answered, with the tokens of its texts.

    `stream` and `entry` are where it came from, `since` is when, for its trace.
    """

    stream: str
    entry: bytes
    ask: Ask
    tokens: Tokens
    since: int = 0

    @property
    def has_expired(self) -> bool:
        """Whether nobody waits any more."""
        return self.ask.deadline <= redis_time.now() * 1000


class AskDesk:
    """Questions between their stream and their answer."""

    def __init__(
        self,
        client: Client,
        encoder: Encoder,
        outbox: Outbox,
        consumer: str,
        arrived: asyncio.Event,
        transports: Transports,
    ) -> None:
        self._client = client
        self._transports = transports
        self._encoder = encoder
        self._outbox = outbox
        self._consumer = consumer
        self._waiting: deque[Question] = deque()
        self._held: set[tuple[str, bytes]] = set()
        self._room = asyncio.Event()
        self._arrived = arrived
        self.outcomes: Counter[str] = Counter({"answered": 0, "refused": 0, "expired": 0})

    def __len__(self) -> int:
        return len(self._waiting)

    async def read(self, reader: Client, stream: str, block_ms: int) -> None:
        """Wait up to `block_ms` for asks on one lane and take them in."""
        if len(self._waiting) >= _MOST_WAITING:
            self._room.clear()
            await self._room.wait()
        found = await groups.read(
            reader, stream, self._consumer, count=_READ_AT_ONCE, block_ms=block_ms, make_stream=True
        )
        await self._take_in(stream, found)

    async def recover(self, lease_ms: int) -> None:
        """Take over asks of dead sidecars; those whose deadline passed are dropped on the way."""
        for lane in range(keys.LANES):
            stream = keys.asks(lane, self._encoder.name)
            idle = await groups.idle_entries(self._client, stream, idle_ms=lease_ms, count=_READ_AT_ONCE)
            free = [item.entry for item in idle if (stream, item.entry) not in self._held]
            found = await groups.claim(self._client, stream, self._consumer, free, idle_ms=lease_ms)
            await self._take_in(stream, found)

    def pick(self) -> list[Question]:
        """Take all questions that somebody still waits for."""
        picked = list(self._waiting)
        self._waiting.clear()
        self._room.set()
        for question in picked:
            if question.has_expired:
                self.outcomes["expired"] += 1
                self._drop(question.stream, question.entry)
        return [question for question in picked if not question.has_expired]

    def answer(self, question: Question, vectors: Matrix) -> None:
        """Send vectors, shape (texts, dimension)."""
        dimension = self._encoder.dimension
        tracing.told("embed_ask", question.ask.trace, question.since, texts=len(question.ask.texts))
        self.outcomes["answered"] += 1
        self._reply(question.stream, question.entry, question.ask, dimension=dimension, vectors=to_bytes(vectors))

    def refuse(self, question: Question, error: str) -> None:
        """Send the reason why there are no vectors."""
        self.outcomes["refused"] += 1
        self._reply(question.stream, question.entry, question.ask, error=error)

    async def _take_in(self, stream: str, found: list[groups.Entry]) -> None:
        for entry, fields in found:
            self._held.add((stream, entry))
            await self._consider(stream, entry, fields)

    async def _consider(self, stream: str, entry: bytes, fields: Fields) -> None:
        try:
            ask = _parse(fields, self._transports)
        except BadMessage as error:
            _log.warning("an ask on %s is dropped: %s", stream, type(error).__name__)
            self._drop(stream, entry)
            return
        since = tracing.now() if ask.trace else 0
        if refusal := self._refusal(ask):
            self.outcomes["refused"] += 1
            self._reply(stream, entry, ask, error=refusal)
            return
        try:
            tokens = await asyncio.to_thread(self._encoder.tokenise, list(ask.texts))
        except Exception as error:  # whatever the tokenizer raises
            self.outcomes["refused"] += 1
            self._reply(stream, entry, ask, error=f"embedding_failed: {type(error).__name__}")
            return
        question = Question(stream, entry, ask, tokens, since)
        if question.has_expired:
            self.outcomes["expired"] += 1
            self._drop(stream, entry)
            return
        self._waiting.append(question)
        self._arrived.set()

    def _refusal(self, ask: Ask) -> str:
        if ask.model != self._encoder.name:
            return f"model_mismatch: this sidecar embeds with {self._encoder.name}"
        if ask.seal and ask.seal not in self._transports:
            return "not_supported: this sidecar does not hold the transport key (MEMORY_TRANSPORT_KEY) of this ask"
        if not 1 <= len(ask.texts) <= MOST_TEXTS:
            return f"invalid_argument: an ask holds 1 to {MOST_TEXTS} texts"
        if sum(len(text.encode(errors="replace")) for text in ask.texts) > MOST_BYTES:
            return f"invalid_argument: an ask holds at most {MOST_BYTES} bytes"
        return ""

    def _reply(
        self, stream: str, entry: bytes, ask: Ask, *, dimension: int = 0, vectors: bytes = b"", error: str = ""
    ) -> None:
        seal = ask.seal if ask.seal in self._transports else ""
        reply = Reply(ask.id, dimension=dimension, vectors=vectors, error=error, seal=seal)
        self._outbox.put(partial(self._send, stream, entry, ask.reply_to, reply))

    def _drop(self, stream: str, entry: bytes) -> None:
        self._outbox.put(partial(self._settle, stream, entry))

    async def _send(self, stream: str, entry: bytes, reply_to: str, reply: Reply) -> None:
        # Answering twice is harmless: the server takes the first reply to an ask.
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.xadd(reply_to, reply.fields(self._transports), maxlen=REPLIES_KEPT, approximate=True)
            pipe.expire(reply_to, REPLY_SECONDS)
            await pipe.execute()
        await self._settle(stream, entry)

    async def _settle(self, stream: str, entry: bytes) -> None:
        await self._client.xackdel(stream, keys.GROUP, entry, ref_policy="ACKED")
        self._held.discard((stream, entry))


def _parse(fields: Fields, transports: Transports) -> Ask:
    ask = Ask.parse(fields, transports)
    if not ask.reply_to.startswith(_REPLY_PREFIX):
        raise BadMessage("the reply goes to no reply stream")
    if not all(isinstance(text, str) for text in ask.texts):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise BadMessage("a text is not text")
    return ask
