"""Runs slow work on long contents in one thread, so that all agents' contents together take one core at most."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_thread = ThreadPoolExecutor(1, thread_name_prefix="contents")


async def in_turn(work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Do a step of work after the steps that were asked for before."""
    return await asyncio.get_running_loop().run_in_executor(_thread, lambda: work(*args, **options))
