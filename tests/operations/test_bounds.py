"""Nothing in Redis grows forever: churn leaves only keys that expire, and docs/inside.md says how each kind ends."""

from __future__ import annotations

import pytest
from support.churn import team
from support.stack import Stack

ROUNDS = 4


async def test_churn_leaves_only_what_expires(stack: Stack, namespace: str) -> None:
    async with team(stack, namespace) as churn:
        await churn.round()
        before = await churn.left()
        for _ in range(ROUNDS):
            await churn.round()
        after = await churn.left()
        print(after.entries - before.entries)
    assert dict(after.entries - before.entries) == {}
