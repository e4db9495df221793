"""Retries calls to Redis through an outage, with backoff, until the sidecar stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from redis import exceptions as redis_errors
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential, wait_random
from tenacity.stop import stop_base

from memory_core.errors import OutcomeUnknown, StoreUnavailable
from memory_core.records.damage import is_wrong_type

_log = logging.getLogger(__name__)
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_UNBLOCKED = "UNBLOCKED"
_REFUSALS = ("MISCONF", "NOREPLICAS", "OOM", "BUSY ", _UNBLOCKED)
_OUTAGES = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    redis_errors.ClusterDownError,
    redis_errors.AskError,
    redis_errors.TryAgainError,
    StoreUnavailable,
    OutcomeUnknown,
    OSError,
)
Result = TypeVar("Result")


class _StopWhenSet(stop_base):
    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping

    def __call__(self, retry_state: RetryCallState) -> bool:
        return self._stopping.is_set()


def is_outage(error: BaseException) -> bool:
    """Whether Redis is unreachable, loading, full or read-only, so that the same call may succeed later."""
    if isinstance(error, redis_errors.AuthenticationError):
        return False
    if isinstance(error, redis_errors.ResponseError) and str(error).startswith(_REFUSALS):
        return True
    return isinstance(error, _OUTAGES)


def may_pass(error: BaseException) -> bool:
    """Whether it is an outage, or a key of another type, which a server removes within seconds."""
    return is_outage(error) or (isinstance(error, redis_errors.ResponseError) and is_wrong_type(error))


async def retry(
    name: str,
    stopping: asyncio.Event,
    action: Callable[[], Awaitable[Result]],
    when: Callable[[BaseException], bool] = is_outage,
) -> Result:
    """Call `action` until it succeeds, with a pause of 0.1 s to 5 s after each error that `when` accepts.

    `action` must be safe to repeat. Once `stopping` is set, an outage is raised.
    """
    retrying = AsyncRetrying(
        retry=retry_if_exception(when),
        wait=wait_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE) + wait_random(0, _FIRST_PAUSE),
        stop=_StopWhenSet(stopping),
        sleep=partial(pause, stopping),
        before_sleep=partial(_log_outage, name),
        reraise=True,
    )
    return await retrying(action)


async def forever(name: str, stopping: asyncio.Event, step: Callable[[], Awaitable[Any]]) -> None:
    """Repeat `step` until `stopping` is set, through outages and while a key is of another type."""
    while not stopping.is_set():
        try:
            await retry(name, stopping, step, may_pass)
        except Exception as error:
            if not (stopping.is_set() and may_pass(error)):
                raise


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Sleep until the time is up or `stopping` is set."""
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        pass


def _log_outage(name: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if error and not is_outage(error):
        _log.error("%s: a key in Redis is of another type; `redis-memory doctor` names it", name)
        return
    _log.warning("%s: Redis is unreachable (%s), attempt %d", name, type(error).__name__, state.attempt_number)
