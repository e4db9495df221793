"""Sends replies to the reply streams of the servers."""

from __future__ import annotations

from memory_core.crypto.sealing import Transports
from memory_core.records import keys
from memory_core.redis_client import Client
from memory_core.store.streams import BadMessage, Reply

_REPLIES_KEPT = 1000
_REPLY_SECONDS = 60
_PREFIX = keys.reply("")[:-1]


def check_reply_stream(key: str) -> None:
    """Refuse a key that is not a reply stream, so that a message cannot make the sidecar write elsewhere.

    Raises:
        BadMessage: the key is not a reply stream.
    """
    if not key.startswith(_PREFIX):
        raise BadMessage("the reply stream has another prefix")


async def send_reply(client: Client, reply_to: str, reply: Reply, transports: Transports) -> None:
    """Add a reply to a reply stream. Sending twice is harmless: the server takes the first reply."""
    async with client.pipeline(transaction=False) as pipe:
        pipe.xadd(reply_to, reply.fields(transports), maxlen=_REPLIES_KEPT, approximate=True)
        pipe.expire(reply_to, _REPLY_SECONDS)
        await pipe.execute()
