"""Tells the next stdio server of an agent on this machine that this one was killed."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from memory_core.errors import MemoryServiceError
from memory_core.settings.settings import Settings
from memory_core.store.connection import redis_url
from memory_server.engine.presence import Presence
from memory_server.local.paths import locate, prepare
from memory_server.local.running import redis_names
from memory_server.local.servers import StdioSession, stdio_session

log = logging.getLogger(__name__)


def announce_session(settings: Settings, presence: Presence, stack: ExitStack) -> None:
    """Write this process's session until the stack ends, and have those of killed servers of its agent ended."""
    if presence.stdio_caller is None:
        return
    own = StdioSession(presence.process_session, *presence.stdio_caller, redis_names(settings)[0])
    try:
        if redis_url(settings) is None:
            prepare(settings.data_dir)
        presence.killed = stack.enter_context(stdio_session(locate(settings.data_dir), own))
    except MemoryServiceError as error:
        log.info("a later server will not know if this one is killed: %s", error.message)
