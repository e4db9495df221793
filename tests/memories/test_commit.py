"""A vector is committed only to the exact record it was computed from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.stack import Agent, Stack

from memory_core.records.keys import GROUP, Keys
from memory_core.records.model import Model, vector_field
from memory_core.records.vectors import Matrix, from_stored, to_bytes, to_stored
from memory_core.store import functions

MODEL, DIMENSION = "all-MiniLM-L6-v2", 384
UNIT: Matrix = np.eye(1, DIMENSION, dtype=np.float32)[0]


async def commit(stack: Stack, keys: Keys, model: str = MODEL, **item: Any) -> str:
    """Commit a vector as a sidecar does; return the verdict."""
    made: dict[str, Any] = {"piece": 0, "entry": "0-1", "bytes": to_bytes(UNIT), "dimension": DIMENSION} | item
    names = [keys.jobs(MODEL), keys.events, keys.memory(made["id"])]
    answer = await functions.call(stack.client, "rm1_commit", names, items=[made], model=model, group=GROUP)
    return answer["verdicts"][0]


@pytest.mark.parametrize(("half", "sent_half"), [(True, False), (False, True), (True, True), (False, False)])
async def test_commit_is_stored_in_the_format_of_the_field(
    stack: Stack, namespace: str, alice: Agent, half: bool, sent_half: bool
) -> None:
    """Sidecars of older releases send float32 for every namespace."""
    chance, model, keys = np.random.default_rng(7), Model(MODEL, DIMENSION, half=half), Keys(namespace)
    await stack.client.hset(
        keys.meta, mapping={"model": MODEL, "dimension": DIMENSION, "field": vector_field(MODEL, half=half)}
    )
    memory_id = await alice.store("The barge is moored.")
    digest = (await stack.client.hget(keys.memory(memory_id), "hash")).decode()
    for _ in range(20):
        sizes = np.float32(10) ** chance.uniform(-9, 0, DIMENSION).astype(np.float32)  # subnormal half floats too
        vector = sizes * chance.choice(np.array([-1, 1], np.float32), DIMENSION)
        vector /= np.linalg.norm(vector)
        sent = to_stored(vector, Model(MODEL, DIMENSION, half=sent_half))
        assert await commit(stack, keys, id=memory_id, rev=1, hash=digest, bytes=sent) == "ok"
        rounded = from_stored(sent, DIMENSION)
        assert await stack.client.hget(keys.memory(memory_id), model.field) == to_stored(rounded, model)
    assert await stack.client.hget(keys.memory(memory_id), "model") == model.label.encode()


@pytest.mark.parametrize("other", [{"rev": 2}, {"rev": 0}, {"hash": "0" * 32}, {"model": "another"}])
async def test_vector_of_another_revision_content_or_model_is_stale(
    stack: Stack, namespace: str, alice: Agent, other: dict[str, Any]
) -> None:
    keys, memory_id = Keys(namespace), await alice.store("The barge is moored.")
    record = keys.memory(memory_id)
    digest = (await stack.client.hget(record, "hash")).decode()
    target: dict[str, Any] = {"id": memory_id, "rev": 1, "hash": digest}
    before = await stack.client.hgetall(record)
    assert await commit(stack, keys, **target | other) == "stale"
    assert await stack.client.hgetall(record) == before
    assert await commit(stack, keys, id=memory_id, rev=1, hash=digest) == "ok"
    assert await stack.client.hget(record, vector_field(MODEL)) == to_stored(UNIT, Model(MODEL, DIMENSION))


async def test_vector_of_a_deleted_memory_restores_nothing(stack: Stack, namespace: str, alice: Agent) -> None:
    keys, memory_id = Keys(namespace), await alice.store("The barge is moored.")
    digest = (await stack.client.hget(keys.memory(memory_id), "hash")).decode()
    await alice.call("clear_memory", memory_ids=[memory_id])
    assert await commit(stack, keys, id=memory_id, rev=1, hash=digest) == "gone"
    assert not await stack.client.exists(keys.memory(memory_id))


@pytest.mark.parametrize(
    "bad",
    [
        {"bytes": to_bytes(UNIT[:-1])},
        {"bytes": to_bytes(UNIT * 2)},
        {"bytes": to_bytes(UNIT[:16]), "dimension": 16},
        {"sealed": True},
    ],
)
async def test_invalid_vector_is_refused_and_its_job_stays(
    stack: Stack, namespace: str, alice: Agent, bad: dict[str, Any]
) -> None:
    keys, memory_id = Keys(namespace), await alice.store("The barge is moored.")
    digest = (await stack.client.hget(keys.memory(memory_id), "hash")).decode()
    target: dict[str, Any] = {"id": memory_id, "rev": 1, "hash": digest}
    before = await stack.client.hgetall(keys.memory(memory_id))
    assert await commit(stack, keys, **target | bad) == "bad_vector"
    assert await stack.client.hgetall(keys.memory(memory_id)) == before
