"""Standing queries match as a search does, by words and meaning; unrelated memories wake no one."""

from __future__ import annotations

import asyncio

import pytest
from support.embedder_fixtures import wait_until
from support.event_helpers import now
from support.long_content import settled
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


async def test_long_memory_matches_a_question_once_however_its_chunks_arrive(alice: Agent, bob: Agent) -> None:
    cursor = (await now(bob))["cursor"]
    query, found = "incidents and outages", list[str]()
    report = " ".join(f"Outage {n}: the payment gateway was down for {n} minutes at night." for n in range(300))
    stored = asyncio.create_task(alice.store(report, visibility="public"))
    while not stored.done() or not await settled(alice):
        answer = await now(bob, cursor=cursor, query=query, kinds="match")
        cursor = answer["cursor"]
        found += [event["id"] for event in answer["events"]]
    for _ in range(5):
        answer = await now(bob, cursor=cursor, query=query, kinds="match")
        cursor = answer["cursor"]
        found += [event["id"] for event in answer["events"]]
    assert found == [await stored]


async def test_match_is_given_again_to_a_call_that_repeats_its_cursor(alice: Agent, bob: Agent) -> None:
    begin = (await now(bob))["cursor"]
    report = " ".join(f"Outage {n}: the payment gateway was down for {n} minutes at night." for n in range(100))
    memory_id = await alice.store(report, visibility="public")
    await wait_until(lambda: settled(alice))
    for query in ("incidents and outages", "incidents and outages", "payment problems"):
        answers = [await now(bob, cursor=begin, query=query, kinds="match")]
        answers.append(await now(bob, cursor=answers[0]["cursor"], query=query, kinds="match"))
        assert [event["id"] for answer in answers for event in answer["events"]] == [memory_id], query


async def test_changed_memory_matches_a_question_again(alice: Agent, bob: Agent) -> None:
    cursor = (await now(bob))["cursor"]
    memory_id = await alice.store("The payment gateway was down for eleven minutes.", visibility="public")
    ids = list[str]()
    for content in ("The payment gateway was down for an hour.", "The payment gateway had an outage at night."):
        answer = await now(bob, cursor=cursor, query="incidents and outages", kinds="match")
        ids += [event["id"] for event in answer["events"]]
        await alice.call("update_memory", memory_id=memory_id, content=content)
        await wait_until(lambda: settled(alice))
        cursor = answer["cursor"]
    assert ids == [memory_id, memory_id]
