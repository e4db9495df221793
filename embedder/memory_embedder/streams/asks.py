"""Consumes the ask streams. A caller waits for each answer, so asks go before jobs."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from dataclasses import dataclass, replace
from functools import partial

from memory_core.crypto.sealing import Transports
from memory_core.observe import tracing
from memory_core.records import keys, redis_time
from memory_core.records.vectors import Matrix, to_bytes
from memory_core.redis_client import Client
from memory_core.store.streams import Ask, BadMessage, Fields, Reply
from memory_embedder.engines.encoder import Encoder, Tokens
from memory_embedder.streams import groups
from memory_embedder.streams.outbox import Action, Outbox
from memory_embedder.streams.replies import check_reply_stream, send_reply

_log = logging.getLogger(__name__)
MAX_TEXTS = 64
MAX_BYTES = 1 << 20
_READ_AT_ONCE = 16
_MAX_WAITING = 64
"""When this many asks wait, the rest stays in the stream, where another sidecar can take them."""


@dataclass(frozen=True, slots=True)
class TokenisedAsk:
    """An ask that can be answered, with the tokens of its texts.

    `stream` and `entry` name the message, `since` is when it was read (for its trace).
    """

    stream: str
    entry: bytes
    ask: Ask
    tokens: Tokens
    since: int = 0

    @property
    def has_expired(self) -> bool:
        """Whether the caller's deadline has passed."""
        return self.ask.deadline <= redis_time.now() * 1000


class AskConsumer:
    """Reads asks, queues them for inference and sends the replies."""

    def __init__(
        self,
        client: Client,
        encoder: Encoder,
        outbox: Outbox,
        consumer: str,
        work_arrived: asyncio.Event,
        transports: Transports,
    ) -> None:
        self._client = client
        self._transports = transports
        self._encoder = encoder
        self._outbox = outbox
        self._consumer = consumer
        self._waiting: deque[TokenisedAsk] = deque()
        self._held: set[tuple[str, bytes]] = set()
        self._has_room = asyncio.Event()
        self._work_arrived = work_arrived
        self.outcomes: Counter[str] = Counter({"answered": 0, "refused": 0, "expired": 0})

    def __len__(self) -> int:
        return len(self._waiting)

    async def read(self, reader: Client, stream: str, block_ms: int) -> None:
        """Wait up to `block_ms` for asks on one stream and accept them."""
        if len(self._waiting) >= _MAX_WAITING:
            self._has_room.clear()
            await self._has_room.wait()
        found = await groups.read(
            reader, stream, self._consumer, count=_READ_AT_ONCE, block_ms=block_ms, make_stream=True
        )
        await self._accept(stream, found)

    async def reclaim(self, lease_ms: int) -> None:
        """Claim the asks of dead sidecars. Asks whose deadline has passed are dropped."""
        for lane in range(keys.LANES):
            stream = keys.asks(lane, self._encoder.name)
            idle = await groups.idle_entries(self._client, stream, idle_ms=lease_ms, count=_READ_AT_ONCE)
            free = [item.entry for item in idle if (stream, item.entry) not in self._held]
            found = await groups.claim(self._client, stream, self._consumer, free, idle_ms=lease_ms)
            await self._accept(stream, found)

    def pick(self) -> list[TokenisedAsk]:
        """Take all waiting asks whose deadline has not passed."""
        picked = list(self._waiting)
        self._waiting.clear()
        self._has_room.set()
        return [asked for asked in picked if not self._drop_expired(asked)]

    def answer(self, asked: TokenisedAsk, vectors: Matrix) -> None:
        """Reply with vectors, shape (texts, dimension)."""
        tracing.record_span("embed_ask", asked.ask.trace, asked.since, texts=len(asked.ask.texts))
        self.outcomes["answered"] += 1
        reply = Reply(asked.ask.id, dimension=self._encoder.dimension, vectors=to_bytes(vectors))
        self._reply(asked.stream, asked.entry, asked.ask, reply)

    def refuse(self, asked: TokenisedAsk, error: str) -> None:
        """Reply with the reason why there are no vectors."""
        self._refuse(asked.stream, asked.entry, asked.ask, error)

    async def _accept(self, stream: str, found: list[groups.Entry]) -> None:
        for entry, fields in found:
            self._held.add((stream, entry))
            await self._accept_one(stream, entry, fields)

    async def _accept_one(self, stream: str, entry: bytes, fields: Fields) -> None:
        try:
            ask = _parse(fields, self._transports)
        except BadMessage as error:
            _log.warning("dropped an ask on %s: %s", stream, type(error).__name__)
            self._drop(stream, entry)
            return
        since = tracing.now() if ask.trace else 0
        if refusal := self._refusal(ask):
            self._refuse(stream, entry, ask, refusal)
            return
        try:
            tokens = await asyncio.to_thread(self._encoder.tokenise, list(ask.texts))
        except Exception as error:  # tokenizers have no common error type
            self._refuse(stream, entry, ask, f"embedding_failed: {type(error).__name__}")
            return
        asked = TokenisedAsk(stream, entry, ask, tokens, since)
        if not self._drop_expired(asked):
            self._waiting.append(asked)
            self._work_arrived.set()

    def _refusal(self, ask: Ask) -> str:
        if ask.model != self._encoder.name:
            return f"model_mismatch: this sidecar embeds with {self._encoder.name}"
        if ask.seal and ask.seal not in self._transports:
            return "not_supported: this sidecar does not hold the transport key (MEMORY_TRANSPORT_KEY) of this ask"
        if not 1 <= len(ask.texts) <= MAX_TEXTS:
            return f"invalid_argument: an ask holds 1 to {MAX_TEXTS} texts"
        if sum(len(text.encode(errors="replace")) for text in ask.texts) > MAX_BYTES:
            return f"invalid_argument: an ask holds at most {MAX_BYTES} bytes"
        return ""

    def _refuse(self, stream: str, entry: bytes, ask: Ask, error: str) -> None:
        self.outcomes["refused"] += 1
        self._reply(stream, entry, ask, Reply(ask.id, error=error))

    def _reply(self, stream: str, entry: bytes, ask: Ask, reply: Reply) -> None:
        if ask.seal in self._transports:
            reply = replace(reply, seal=ask.seal)
        self._put(stream, entry, partial(self._send, stream, entry, ask.reply_to, reply))

    def _drop_expired(self, asked: TokenisedAsk) -> bool:
        """Drop an ask whose deadline has passed. Returns whether it was dropped."""
        if not asked.has_expired:
            return False
        self.outcomes["expired"] += 1
        self._drop(asked.stream, asked.entry)
        return True

    def _drop(self, stream: str, entry: bytes) -> None:
        self._put(stream, entry, partial(self._acknowledge, stream, entry))

    def _put(self, stream: str, entry: bytes, action: Action) -> None:
        self._outbox.put(action, partial(self._held.discard, (stream, entry)))

    async def _send(self, stream: str, entry: bytes, reply_to: str, reply: Reply) -> None:
        await send_reply(self._client, reply_to, reply, self._transports)
        await self._acknowledge(stream, entry)

    async def _acknowledge(self, stream: str, entry: bytes) -> None:
        await groups.acknowledge(self._client, stream, entry)
        self._held.discard((stream, entry))


def _parse(fields: Fields, transports: Transports) -> Ask:
    ask = Ask.parse(fields, transports)
    check_reply_stream(ask.reply_to)
    if not all(isinstance(text, str) for text in ask.texts):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise BadMessage("a text is not a string")
    return ask
