"""How often Redis indexes a memory: each write of its hash does, and inserts the vector into the graph."""

from __future__ import annotations

from typing import Any

import pytest
from support.embedder_fixtures import wait_until
from support.long_content import prose, settled
from support.stack import Agent, Server, Stack

from memory_core.errors import EmbeddingUnavailable
from memory_core.records.keys import Keys
from memory_core.store import functions
from memory_server.memories.chunks import settle


async def indexed(stack: Stack, namespace: str) -> int:
    """How often records of a namespace were indexed: each time they get another internal id."""
    info = await stack.client.execute_command("FT.INFO", Keys(namespace).index_alias)
    return int(info[b"max_doc_id"])


async def chunks_of(stack: Stack, namespace: str, memory_id: str) -> list[str]:
    keys = Keys(namespace)
    number = int(await stack.client.hget(keys.memory(memory_id), "pieces"))
    return [keys.hash_of_chunk(memory_id, chunk) for chunk in range(number)]


async def test_stored_memory_with_its_vector_is_indexed_once(stack: Stack, alice: Agent, namespace: str) -> None:
    await alice.store("The barge is moored.", wait=True)
    before = await indexed(stack, namespace)
    await alice.store("The ferry leaves at noon.", tags=["a"], context="b", metadata={"c": 1}, wait=True)
    assert await indexed(stack, namespace) - before == 1


async def test_update_removes_fields_and_vector_in_one_write(
    stack: Stack, server: Server, alice: Agent, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_id = await alice.store("The barge is moored.", tags=["a"], context="b", wait=True)

    def no_answer(*_: Any, **__: Any) -> Any:
        raise EmbeddingUnavailable("no sidecar answered", hint="", retry_after=1.0)

    before = await indexed(stack, namespace)
    monkeypatch.setattr(type(server.service.embeddings), "embed", no_answer)
    await alice.call("update_memory", memory_id=memory_id, content="The ferry leaves at noon.", tags=[], context="")
    await wait_until(lambda: settled(alice))
    assert await indexed(stack, namespace) - before == 3, "removed fields, new fields, and the vector of its job"


async def test_settled_chunks_are_not_indexed_again(stack: Stack, server: Server, alice: Agent, namespace: str) -> None:
    memory_id = await alice.store(prose(120))
    await wait_until(lambda: settled(alice))
    before, number = await indexed(stack, namespace), len(await chunks_of(stack, namespace, memory_id))
    await settle(server.service, namespace, f"{memory_id}:{number}")
    assert await indexed(stack, namespace) == before
    await alice.call("update_memory", memory_id=memory_id, metadata={"a": 1})
    assert await indexed(stack, namespace) - before == number


async def test_marking_vectors_that_are_there_indexes_nothing(stack: Stack, alice: Agent, namespace: str) -> None:
    memory_id = await alice.store(prose(120))
    await wait_until(lambda: settled(alice))
    before = await indexed(stack, namespace)
    names = (await chunks_of(stack, namespace, memory_id))[:8]
    await functions.call(stack.client, "rm1_mark_vectors", names, remove=None)
    assert await indexed(stack, namespace) == before
