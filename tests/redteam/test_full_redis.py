"""A sidecar whose user fell into wrong hands adds to a Redis that is above `maxmemory`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from redis import exceptions as redis_errors
from support.redis_users import SIDECAR
from support.stack import Stack

from memory_core.records.ids import new_id
from memory_core.records.keys import GROUP, Keys
from memory_core.store import functions
from memory_core.store.connection import connect

pytestmark = pytest.mark.redteam
TEXT = "x" * 100_000


def attacks(keys: Keys) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Calls of Functions that run above `maxmemory`, each with a long text."""
    own = f"{keys.prefix}jobs:{new_id()}"
    job = {"id": TEXT, "rev": 1, "error": TEXT, "group": GROUP, "entry": "1-1"}
    return [
        ("rm1_hold_lease", [own], {"holder": TEXT, "milliseconds": 1_000_000}),
        ("rm1_bury", [own, f"{keys.prefix}jobs:{new_id()}"], job),
        ("rm1_drop_events", [keys.events], {"lost": [{"id": TEXT, "scope": TEXT, "to": TEXT}], "drop": ["1-1"]}),
        ("rm1_discard", [own], {"entries": [TEXT] * 100, "why": TEXT}),
    ]


@pytest.mark.parametrize("number", range(4))
async def test_user_of_the_sidecar_adds_little_above_maxmemory(stack: Stack, namespace: str, number: int) -> None:
    keys = Keys(namespace)
    async with connect(stack.redis.url_of(SIDECAR)) as sidecar:
        await functions.load_library(stack.client)
        await stack.client.config_set("maxmemory", "1mb")
        try:
            before = (await stack.client.info("memory"))["used_memory_dataset"]
            for _ in range(20):
                function, names, request = attacks(keys)[number]
                with suppress(redis_errors.ResponseError):
                    await functions.call(sidecar, function, names, **request)
            after = (await stack.client.info("memory"))["used_memory_dataset"]
        finally:
            await stack.client.config_set("maxmemory", "0")
            await stack.client.acl_log_reset()
    assert after - before < 2_500_000
