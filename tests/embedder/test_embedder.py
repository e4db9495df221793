"""The sidecar on a real Redis: jobs get vectors, asks go first, and wrong models are refused."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from support import embedder_fixtures
from support.embedder_fixtures import (
    FAST,
    TEXTS,
    RedisServer,
    Team,
    ask,
    await_reply,
    cosine,
    running,
    start_process,
    wait_until,
)

from memory_core.errors import ModelMismatch
from memory_core.package_data import resource
from memory_core.records import keys
from memory_core.records.vectors import from_bytes
from memory_core.redis_client import Client
from memory_core.store import sidecar as sidecars
from memory_core.store.streams import Ask, Reply
from memory_embedder.engines.encoder import encode
from memory_embedder.engines.fake import FakeEncoder
from memory_embedder.engines.onnx import OnnxEncoder
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_embedder.sidecar import Sidecar
from memory_embedder.streams.throughput import Throughput

server, client, team = embedder_fixtures.server, embedder_fixtures.client, embedder_fixtures.team
minilm = embedder_fixtures.minilm


async def test_stored_memory_gets_its_vector(server: RedisServer, client: Client, minilm: OnnxEncoder) -> None:
    team = await Team(client, DEFAULT_MODEL, 384).open()
    async with running(server.url, minilm):
        memory_id = await team.store(TEXTS[0])
        await team.wait_for_vectors([memory_id])
    vector = await team.vector(memory_id)
    assert vector is not None
    assert cosine(vector, encode(minilm, [TEXTS[0]])[0]) > 0.9999
    assert await client.hget(team.names.memory(memory_id), "model") == team.vector_field.encode()
    assert await client.xlen(team.jobs) == 0


async def test_jobs_stored_before_the_sidecar_starts_are_found_without_wakeup(server: RedisServer, team: Team) -> None:
    ids = [await team.store(text, ring=False) for text in TEXTS[:20]]
    async with running(server.url, FakeEncoder()):
        await team.wait_for_vectors(ids)


async def test_namespace_created_later_is_served(server: RedisServer, client: Client) -> None:
    async with running(server.url, FakeEncoder()):
        team = await Team(client, "fake", 16, namespace="later").open()
        await team.wait_for_vectors([await team.store("hello there", ring=False)])


async def test_each_memory_gets_the_vector_of_its_own_text(server: RedisServer, team: Team) -> None:
    encoder = FakeEncoder()
    texts = [" ".join(["word"] * (1 + number % 40) + [str(number)]) for number in range(100)]
    async with running(server.url, encoder):
        ids = await team.store_many(texts)
        await team.wait_for_vectors(ids)
    for memory_id, expected in zip(ids, encode(encoder, texts), strict=True):
        vector = await team.vector(memory_id)
        assert vector is not None
        assert np.allclose(vector, expected, atol=1e-3)


async def test_reply_has_vectors_in_the_order_of_the_texts(server: RedisServer, client: Client) -> None:
    encoder = FakeEncoder()
    texts = ["a long text of many words", "short", "of middling length"]
    async with running(server.url, encoder):
        ask_id = await ask(client, "fake", texts, lane=1)
        reply = await await_reply(client, ask_id)
        await wait_until(lambda: _is_empty(client, keys.asks(1, "fake")))
    assert reply.error == ""
    assert np.allclose(from_bytes(reply.vectors, reply.dimension), encode(encoder, texts), atol=1e-6)
    assert 0 < await client.ttl(keys.reply(ask_id)) <= 60


async def _is_empty(client: Client, stream: str) -> bool:
    return await client.xlen(stream) == 0


@pytest.mark.long
async def test_ask_is_answered_before_a_backlog_of_jobs(server: RedisServer, client: Client, team: Team) -> None:
    async with running(server.url, FakeEncoder(seconds_per_token=0.001)) as sidecar:
        ids = await team.store_many(TEXTS[:300])
        await wait_until(lambda: team.count_vectors(ids[:300]))
        reply = await await_reply(client, await ask(client, "fake", ["a caller waits"]))
        left = len(ids) - await team.count_vectors(ids)
        assert reply.error == ""
        assert left > 50
        await team.wait_for_vectors(ids)
        assert sidecar.status().asks_total == 1


async def test_expired_ask_is_dropped(server: RedisServer, client: Client) -> None:
    late = await ask(client, "fake", ["too late"], seconds=-1)
    async with running(server.url, FakeEncoder()) as sidecar:
        await await_reply(client, await ask(client, "fake", ["in time"]))
        await wait_until(lambda: _is_empty(client, keys.asks(0, "fake")))
        assert sidecar.status().asks_total == 1
    assert not await client.exists(keys.reply(late))


@pytest.mark.parametrize(
    ("model", "texts", "error"),
    [
        ("other", ["x"], "model_mismatch: this sidecar embeds with fake"),
        ("fake", ["x"] * 65, "invalid_argument: an ask holds 1 to 64 texts"),
        ("fake", [], "invalid_argument: an ask holds 1 to 64 texts"),
        ("fake", ["x" * (1 << 20), "y"], "invalid_argument: an ask holds at most 1048576 bytes"),
        ("fake", ["good", "some poison"], "embedding_failed: RuntimeError"),
    ],
)
async def test_invalid_ask_gets_an_error_reply(
    server: RedisServer, client: Client, model: str, texts: list[str], error: str
) -> None:
    async with running(server.url, FakeEncoder(poison="poison")):
        reply = await await_reply(client, await ask(client, model, texts, to="fake"))
    assert (reply.error, reply.vectors) == (error, b"")


async def test_ask_with_reply_to_another_key_is_dropped(server: RedisServer, client: Client) -> None:
    question = Ask("x", "rm:elsewhere", "fake", 9_000_000_000_000, ("a text",))
    await client.xadd(keys.asks(0, "fake"), question.fields())
    async with running(server.url, FakeEncoder()):
        await wait_until(lambda: _is_empty(client, keys.asks(0, "fake")))
    assert not await client.exists("rm:elsewhere")


async def test_namespace_of_another_model_exits_with_code_78(server: RedisServer, client: Client) -> None:
    await Team(client, "bge-small-en", 384, namespace="theirs").open()
    process = await start_process(server.url, "--backend", "onnx")
    _, stderr = await process.communicate()
    assert process.returncode == 78
    [line] = stderr.decode().splitlines()
    assert "namespace theirs is indexed for bge-small-en (384 dimensions), not for all-MiniLM-L6-v2 (384)" in line
    assert "--model bge-small-en" in line


async def test_namespace_of_another_dimension_is_refused(server: RedisServer, team: Team) -> None:
    assert team.settings.vector_dimension == 16
    with pytest.raises(ModelMismatch, match=r"fake \(16 dimensions\), not for fake \(32\)"):
        await Sidecar(server.url, FakeEncoder(dimension=32), FAST).run()


async def test_later_namespace_of_another_model_is_skipped_and_reported(
    server: RedisServer, client: Client, team: Team
) -> None:
    async with running(server.url, FakeEncoder()) as sidecar:
        theirs = await Team(client, "other", 16, namespace="theirs").open()
        memory_id = await theirs.store("not for us")
        await wait_until(lambda: _reports(client, sidecar.id, "namespace theirs is indexed for other"))
        await team.wait_for_vectors([await team.store("for us")])
    assert await theirs.vector(memory_id) is None
    assert await client.xlen(theirs.jobs) == 1


async def _reports(client: Client, sidecar_id: str, text: str) -> bool:
    return any(text in status.fallback for status in await sidecars.living(client) if status.id == sidecar_id)


async def test_heartbeat_exists_until_the_sidecar_stops(server: RedisServer, client: Client, team: Team) -> None:
    async with running(server.url, FakeEncoder()) as sidecar:
        await team.wait_for_vectors(await team.store_many(TEXTS[:20]))

        async def described() -> bool:
            [status] = await sidecars.living(client)
            return status.state == "ready" and status.texts_total >= 20 and status.texts_per_second > 0

        await wait_until(described)
        [status] = await sidecars.living(client)
        assert (status.id, status.model, status.dimension, status.backend) == (sidecar.id, "fake", 16, "fake")
        assert status.memory_used
        assert 256 <= status.batch_tokens <= 16_384
    assert await sidecars.living(client) == []
    assert not await client.exists(keys.sidecar(sidecar.id))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "no-such-model"], "found no weights for the model 'no-such-model'"),
        (["--device", "abacus"], "settings are not valid: gpu.preferred_device"),
    ],
)
async def test_invalid_flag_prints_one_line_and_exits_with_code_78(flags: list[str], message: str) -> None:
    process = await start_process("unix:///nowhere.sock", *flags)
    _, stderr = await process.communicate()
    assert process.returncode == 78
    [line] = stderr.decode().splitlines()
    assert message in line


async def test_sigterm_stops_a_sidecar_that_waits_for_redis(tmp_path: Path) -> None:
    process = await start_process(f"unix://{tmp_path}/none.sock", "--backend", "onnx")
    assert process.stderr
    assert b"Redis is unreachable" in await asyncio.wait_for(process.stderr.readline(), 20)
    process.terminate()
    await process.communicate()
    assert process.returncode == 0


async def test_sidecar_stops_when_its_parent_is_killed(server: RedisServer, client: Client) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'memory_embedder', *sys.argv[1:]])"
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, "--redis-url", server.url, "--exit-with-parent"
    )

    async def alive() -> bool:
        return any(status.state == "ready" for status in await sidecars.living(client))

    async def gone() -> bool:
        return not await sidecars.living(client)

    await wait_until(alive)
    parent.kill()
    await parent.wait()
    await wait_until(gone, 6)


async def test_messages_match_their_schemas(client: Client, team: Team) -> None:
    await team.store("a text")
    await ask(client, "fake", ["a text"])
    replies = [Reply("x", 16, b"\x00" * 64).fields(), Reply("x", error="model_mismatch: no").fields()]
    for reply in replies:
        await client.xadd("reply", reply)
    for schema, stream in {"job": team.jobs, "ask": keys.asks(0, "fake"), "reply": "reply"}.items():
        rules = json.loads(resource(f"schemas/{schema}.json").read_text())
        for _, fields in await client.xrange(stream):
            message = {name.decode(): value.decode("latin-1") for name, value in fields.items()}
            jsonschema.validate(message, rules)
            for name in message.keys() - {"half"}:
                with pytest.raises(jsonschema.ValidationError):
                    jsonschema.validate({key: value for key, value in message.items() if key != name}, rules)


def test_budget_follows_the_speed_within_limits() -> None:
    throughput = Throughput(10_000)
    assert throughput.budget == 1000
    for _ in range(50):
        throughput.learn(100, throughput.budget, throughput.budget / 40_000)
    assert 3800 < throughput.budget <= 4000
    throughput.learn(1, 5, 1.0)
    assert throughput.budget > 3700
    for speed, bound in ((1.0, 256), (1e9, 16_384)):
        throughput.tokens_per_second = speed
        assert throughput.budget == bound


def test_recent_ask_makes_batches_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    throughput = Throughput(40_000)
    throughput.note_ask()
    assert (throughput.budget, throughput.asks_total, throughput.is_asked) == (1200, 1, True)
    later = time.monotonic() + 3
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert (throughput.budget, throughput.is_asked) == (4000, False)


async def test_jobs_spare_a_core_after_an_ask_but_asks_do_not(server: RedisServer, client: Client, team: Team) -> None:
    encoder = FakeEncoder()
    async with running(server.url, encoder):
        warm_up = len(encoder.spare_core)
        await team.wait_for_vectors([await team.store("before an ask")])
        assert encoder.spare_core[warm_up:] == [False]
        await await_reply(client, await ask(client, "fake", ["a question"]))
        await team.wait_for_vectors([await team.store("soon after an ask")])
        assert encoder.spare_core[warm_up:] == [False, False, True]
