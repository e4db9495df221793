"""Standing queries match as a search does, by words and meaning; unrelated memories wake no one."""

from __future__ import annotations

import pytest
from support.event_helpers import now
from support.stack import Agent

WAKES = [
    ("security problems in the code", "Security review: SQL injection in login.py, the code builds the query by hand."),
    ("security problems in the code", "Found a SQL injection vulnerability in the login code."),
    ("decisions about the database", "Decided: Postgres 16 instead of MySQL, because of JSONB indexes."),
    ("failing tests", "test_checkout_total is flaky: it fails once in ten runs on CI."),
    ("incidents and outages", "At 03:12 the payment gateway was down for eleven minutes."),
    ("license questions", "We cannot ship libfoo: it is GPL and our product is closed source."),
    ("memory leaks", "The worker's heap grows by 40 MB an hour until it is killed."),
]
UNRELATED = [
    "Lunch is at half past twelve in the blue kitchen.",
    "Tomatoes want sun and water.",
    "The chess club meets on Thursdays.",
    "Remember to water the plants on the balcony.",
]


@pytest.mark.parametrize(("query", "content"), WAKES)
async def test_standing_query_wakes_for_related_and_not_for_unrelated(
    alice: Agent, bob: Agent, query: str, content: str
) -> None:
    begin = (await now(bob))["cursor"]
    for text in UNRELATED:
        await alice.store(text, visibility="public")
    memory_id = await alice.store(content, visibility="public")
    await alice.store("The printer is out of yellow toner.", visibility="public")
    answer = await now(bob, cursor=begin, query=query, kinds="match")
    assert [event["id"] for event in answer["events"]] == [memory_id]
    assert answer["events"][0]["what"] == f"memory {memory_id} by alice matches your question"
