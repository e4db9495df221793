"""The bulk engine alone: its answers, its permission checks and its cache."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from support import embedder_fixtures
from support.bulk_helpers import DIMENSION, ENGINE, PUBLIC, Stored, loaded, mirror_of, seen_by, unit_vectors
from support.embedder_fixtures import Team, wait_until

from memory_core.records.keys import Keys
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix, to_bytes, to_stored
from memory_core.redis_client import Client
from memory_core.store.bulk_messages import Clusters, Duplicates, IndexType, Nearest, Selection
from memory_embedder.bulk import mirror_cache, numerics
from memory_embedder.bulk.array_module import ArrayModule, DeviceRows
from memory_embedder.bulk.engine import Snapshot
from memory_embedder.bulk.faiss_index import FaissLibrary, build
from memory_embedder.bulk.mirror import Mirror
from memory_embedder.bulk.mirror_cache import MirrorCache, MirrorTooLarge

ARRAYS = ArrayModule()
AMPLE = 1 << 30
MODEL = Model("fake", DIMENSION)
server, client, team = embedder_fixtures.server, embedder_fixtures.client, embedder_fixtures.team


def brute_force(queries: Matrix, vectors: Matrix, k: int, chosen: Any) -> list[list[int]]:
    """The k nearest of the chosen rows, by sorting all rows."""
    scores = (queries.astype(np.float64) @ vectors.T.astype(np.float64)).astype(np.float32)
    scores[:, ~chosen] = -np.inf
    ordered = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, int(chosen.sum()))]
    return ordered.tolist()


def snapshot(mirror: Mirror, chosen: Any) -> Snapshot:
    """The input of the engine."""
    return Snapshot(mirror.vectors, mirror.ids, mirror.pieces, chosen, DeviceRows(ARRAYS))


@pytest.mark.parametrize("share", [0.0, 0.002, 0.3, 0.8, 1.0])
@pytest.mark.parametrize(("count", "rows", "k"), [(1, 9000, 10), (37, 5000, 10), (3, 40, 100)])
def test_exact_search_equals_brute_force(share: float, count: int, rows: int, k: int) -> None:
    vectors, queries = unit_vectors(rows), unit_vectors(count, seed=1)
    chosen = np.random.default_rng(2).random(rows) < share
    found = numerics.nearest(ARRAYS, queries, vectors, k, chosen)
    expected = brute_force(queries, vectors, k, chosen)
    for query, row, scores, wanted in zip(queries, found.rows.tolist(), found.scores, expected, strict=True):
        assert [one for one in row if one >= 0] == wanted
        assert row[len(wanted) :] == [-1] * (k - len(wanted))
        assert scores[: len(wanted)] == pytest.approx(vectors[wanted] @ query, abs=1e-5)


def test_equal_vectors_are_found_in_storage_order() -> None:
    vectors = np.repeat(unit_vectors(1), 3000, axis=0)
    assert numerics.nearest(ARRAYS, vectors[:2], vectors, 5).rows.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_deadline_stops_a_search() -> None:
    with pytest.raises(numerics.DeadlinePassed):
        numerics.nearest(ARRAYS, unit_vectors(1), unit_vectors(10), 1, deadline=time.monotonic() - 1)


@pytest.mark.parametrize("kind", ["IVFFlat", "HNSW"])
def test_old_index_has_high_recall_and_finds_newer_rows(kind: IndexType) -> None:
    faiss = FaissLibrary(gpus=False)
    assert faiss.usable(kind) == kind
    vectors, queries = unit_vectors(6000), unit_vectors(100, seed=1)
    scopes = [("pub",) if number % 2 else ("o:other",) for number in range(6000)]
    mirror = mirror_of(vectors[:5000], scopes=scopes)
    index = build(faiss, kind, mirror.vectors, mirror.changes)
    mirror.put(loaded(f"m{number}", vectors[number], scope=scopes[number]) for number in range(5000, 6000))
    mirror.put(loaded(f"m{number}") for number in range(300))
    chosen = seen_by(mirror, "pub")
    request = Nearest(selection=PUBLIC, queries=to_bytes(queries), k=10, exact=False)
    found = ENGINE.nearest(snapshot(mirror, chosen), request, queries, index, float("inf"))
    assert not found.exact
    places = np.frombuffer(found.places, dtype="<i4").reshape(-1, 10).tolist()
    rows = [{int(found.ids[place][1:]) for place in one} for one in places]
    assert all(row % 2 and row >= 300 for one in rows for row in one)
    expected = brute_force(queries, vectors, 10, chosen)
    recall = sum(len(one & set(wanted)) for one, wanted in zip(rows, expected, strict=True)) / 1000
    assert recall >= 0.95
    assert any(row >= 5000 for one in rows for row in one)


def test_index_is_not_used_if_few_rows_are_permitted() -> None:
    vectors = unit_vectors(2000)
    mirror = mirror_of(vectors, scopes=[("o:few",) if number < 20 else ("pub",) for number in range(2000)])
    index = build(FaissLibrary(gpus=False), "HNSW", mirror.vectors, 0)
    request = Nearest(selection=PUBLIC, queries=to_bytes(vectors[:1]), k=20, exact=False)
    found = ENGINE.nearest(snapshot(mirror, seen_by(mirror, "o:few")), request, vectors[:1], index, float("inf"))
    assert found.exact
    assert set(found.ids) == {f"m{number}" for number in range(20)}


def test_cagra_without_gpu_is_hnsw_and_any_index_without_faiss_is_flat() -> None:
    faiss = FaissLibrary(gpus=False)
    assert [faiss.usable(kind) for kind in ("Flat", "IVFFlat", "HNSW", "CAGRA")] == ["Flat", "IVFFlat", "HNSW", "HNSW"]
    faiss.module = None
    assert faiss.usable("IVFFlat") == "Flat"


def test_near_duplicates_are_all_similar_pairs_of_two_memories() -> None:
    vectors = unit_vectors(3000, subjects=1500)
    mirror = Mirror(DIMENSION)
    mirror.put(loaded(f"m{number}", *vectors[2 * number : 2 * number + 2]) for number in range(1500))
    cosines = np.triu(vectors @ vectors.T, 1)
    alike = [(int(i), int(j)) for i, j in np.argwhere(cosines >= 0.9) if i // 2 != j // 2]
    assert 50 < len(alike) < 3000
    request = Duplicates(selection=PUBLIC, least=0.9, most=100_000)
    found = ENGINE.duplicates(snapshot(mirror, seen_by(mirror, "pub")), request, float("inf"))
    pairs = np.frombuffer(found.pairs, dtype="<i4").reshape(-1, 2).tolist()
    row = [2 * int(name[1:]) + piece for name, piece in zip(found.ids, found.pieces, strict=True)]
    assert sorted(tuple(sorted((row[a], row[b]))) for a, b in pairs) == sorted(alike)
    few = ENGINE.duplicates(
        snapshot(mirror, seen_by(mirror, "pub")), request.model_copy(update={"most": 7}), float("inf")
    )
    assert few.total == len(alike)
    best = sorted((float(cosines[i, j]) for i, j in alike), reverse=True)[:7]
    assert np.frombuffer(few.scores, dtype="<f4").tolist() == pytest.approx(best, abs=1e-5)


def test_clusters_match_the_subjects() -> None:
    middles = np.eye(DIMENSION, dtype=np.float32)[:4]
    vectors = np.concatenate([np.repeat(middle[None], 5 + number, axis=0) for number, middle in enumerate(middles)])
    mirror = mirror_of(vectors)
    request = Clusters(selection=PUBLIC, count=4, show=2)
    found = ENGINE.clusters(snapshot(mirror, seen_by(mirror, "pub")), request, float("inf"))
    assert list(found.sizes) == [8, 7, 6, 5]
    assert list(found.closeness) == [1.0] * 4
    assert [found.ids[place] for place in found.shown[0]] == ["m18", "m19"]


# selections


def test_invalid_vectors_are_refused() -> None:
    vectors = unit_vectors(6)
    vectors[1, 3], vectors[2, 0], vectors[3] = np.nan, np.inf, 0
    mirror = Mirror(DIMENSION)
    mirror.put(loaded(f"m{number}", vector) for number, vector in enumerate(vectors))
    mirror.put([loaded("short", vectors[0][:8]), loaded("late", vectors[5])])
    assert mirror.ids == ["m0", "m4", "m5", "late"]
    assert mirror.refused == 4
    assert numerics.nearest(ARRAYS, vectors[4:5], mirror.vectors, 4).rows[0, 0] == 1


def test_selection_needs_all_clauses_and_none_of_the_excluded() -> None:
    vector = unit_vectors(1)[0]
    mirror = Mirror(DIMENSION)
    mirror.put(
        [
            loaded("a", vector, scope=["o:x", "i:a"], labels={"tags": ["red", "big"], "type": ["code"]}, occurred_at=5),
            loaded("b", vector, scope=["o:x", "i:b"], labels={"tags": ["red"], "type": ["code"]}),
            loaded("c", vector, vector, scope=["o:y", "pub", "i:c"], labels={"type": ["task"]}, occurred_at=9),
            loaded("d", vector, scope=["o:x"], labels={"tags": ["red"]}, expires_at=100.0),
            loaded("e", vector, scope=[]),
        ]
    )

    def chosen(now: float = 50.0, **selection: Any) -> str:
        return "".join(mirror.ids[row] for row in np.flatnonzero(mirror.select(Selection(**selection), now)))

    assert chosen(every=[("scope", ["o:x"])]) == "abd"
    assert chosen(every=[("scope", ["o:x"])], now=100.0) == "ab"
    assert chosen(every=[("scope", ["o:z", "pub", "i:b"])]) == "bcc"
    assert chosen(every=[("scope", ["o:x", "pub"])], none=[("scope", ["o:y"])]) == "abd"
    assert chosen(every=[("scope", ["o:x"]), ("tags", ["red"]), ("tags", ["big"])]) == "a"
    assert chosen(every=[("scope", ["o:x"]), ("tags", ["blue", "big"])]) == "a"
    assert chosen(every=[("scope", ["o:x", "pub"])], since=5, until=8) == "a"
    assert chosen(every=[("scope", ["pub"]), ("id", ["a", "c"])]) == "cc"
    assert chosen(every=[("scope", [])]) == ""


def test_rows_of_mistrusted_writers_are_hidden_from_a_time_on() -> None:
    mirror, vectors = Mirror(DIMENSION), unit_vectors(4)
    stored = (("bob", 4.0), ("bob", 5.0), ("ann", 9.0), ("bob", float("nan")))
    mirror.put(
        loaded(f"m{number}", vectors[number], labels={"writer": [name]}, updated_at=updated)
        for number, (name, updated) in enumerate(stored)
    )
    for mistrusted, left in (([], [0, 1, 2, 3]), ([("bob", 5.0)], [0, 2]), ([("bob", 0.0), ("ann", 9.5)], [2])):
        selection = PUBLIC.model_copy(update={"mistrusted": mistrusted})
        assert np.flatnonzero(mirror.select(selection, 0.0)).tolist() == left


def test_rows_of_other_owners_do_not_change_the_answer() -> None:
    vectors, queries = unit_vectors(500), unit_vectors(5, seed=3)
    request = Nearest(selection=Selection(every=[("scope", ["o:me"])]), queries=to_bytes(queries), k=10)
    alone, crowded = mirror_of(vectors, scopes=[("o:me",)] * 500), Mirror(DIMENSION)
    for number, vector in enumerate(vectors):
        crowded.put([loaded(f"x{number}", queries[number % 5], scope=["o:stranger"])])
        crowded.put([loaded(f"m{number}", vector, scope=["o:me"])])
    one, other = (
        ENGINE.nearest(snapshot(mirror, seen_by(mirror, "o:me")), request, queries, None, float("inf"))
        for mirror in (alone, crowded)
    )
    assert [one.ids[place] for place in np.frombuffer(one.places, dtype="<i4")] == [
        other.ids[place] for place in np.frombuffer(other.places, dtype="<i4")
    ]
    assert np.frombuffer(one.scores, "<f4") == pytest.approx(np.frombuffer(other.scores, "<f4"), abs=1e-6)


def test_replaced_and_deleted_rows_are_hidden_and_compacted() -> None:
    vectors = unit_vectors(2000)
    mirror = mirror_of(vectors[:1000])
    before = seen_by(mirror, "pub")
    mirror.put(loaded(f"m{number}", vectors[1000 + number], scope=["o:x"]) for number in range(500))
    mirror.put(loaded(f"m{number}") for number in range(900, 1000))
    assert before.sum() == 1000, "a running search keeps its rows"
    assert mirror.living == 900
    assert mirror.needs_compaction
    for one in (mirror, mirror.compacted()):
        assert {one.ids[row] for row in np.flatnonzero(seen_by(one, "pub"))} == {f"m{n}" for n in range(500, 900)}
        moved = np.flatnonzero(seen_by(one, "o:x"))
        assert [one.ids[row] for row in moved] == [f"m{number}" for number in range(500)]
        assert np.array_equal(one.vectors[moved], vectors[1000:1500])
        one.put([loaded("m600", vectors[0], scope=["o:x"])])
        assert seen_by(one, "o:x").sum() == 501
    assert mirror.compacted().count == 900
    assert mirror.compacted().nbytes < mirror.nbytes


def test_single_chunk_can_be_replaced() -> None:
    vectors = unit_vectors(4)
    mirror = Mirror(DIMENSION)
    mirror.put([loaded("long", vectors[0], vectors[1])])
    later = loaded("long", vectors[2])
    mirror.put([type(later)("long", later.labels, later.expires_at, pieces=[(1, to_bytes(vectors[3]))], whole=False)])
    rows = np.flatnonzero(seen_by(mirror, "pub"))
    assert mirror.pieces[rows].tolist() == [0, 1]
    assert np.array_equal(mirror.vectors[rows], vectors[[0, 3]])


# mirrors of Redis


async def found_in(cache: MirrorCache, namespace: str = "team") -> set[str]:
    """The ids in a namespace that every caller may see."""
    _, seen = await cache.snapshot(namespace, PUBLIC)
    return {seen.ids[row] for row in np.flatnonzero(seen.chosen)}


def new_cache(client: Client, budget: int = AMPLE) -> MirrorCache:
    return MirrorCache(client, ENGINE, "fake", DIMENSION, budget)


async def test_mirror_has_existing_and_new_memories(client: Client, team: Team) -> None:
    stored, vectors = Stored(team), unit_vectors(700)
    ids = [await stored.store(vector) for vector in vectors[:600]]
    cache = new_cache(client)
    assert await found_in(cache) == set(ids)
    ids += [await stored.store(vector) for vector in vectors[600:]]
    await team.delete(ids.pop(0))
    hidden = await stored.store(vectors[0], scope=["o:stranger"])
    assert await found_in(cache) == set(ids)
    await client.hset(team.names.memory(hidden), "scope", "pub")
    assert hidden not in await found_in(cache), "a change without an event is not seen"
    await client.xadd(
        team.names.events, {"kind": "memory", "op": "updated", "id": hidden, "piece": "0", "vector": "1", "scope": ""}
    )
    assert await found_in(cache) == {*ids, hidden}


async def test_expired_memory_is_hidden_at_once(client: Client, team: Team) -> None:
    stored = Stored(team)
    short, long = [await stored.store(vector, ttl=ttl) for vector, ttl in zip(unit_vectors(2), (1, 60), strict=True)]
    cache = new_cache(client)
    assert await found_in(cache) == {short, long}

    async def has_expired() -> bool:
        return await found_in(cache) == {long}

    await wait_until(has_expired)
    await cache.keep_up()
    assert cache.mirrors[0].mirror.living == 1


@pytest.mark.parametrize("how", ["trimmed", "recreated", "deleted"])
async def test_mirror_is_refilled_after_events_were_lost(client: Client, team: Team, how: str) -> None:
    stored, vectors = Stored(team), unit_vectors(6)
    await stored.store(vectors[0])
    cache = new_cache(client)
    await found_in(cache)
    unseen = [await stored.store(vector) for vector in vectors[1:3]]
    await client.delete(team.names.memory(unseen[1]))
    match how:
        case "trimmed":
            await client.xtrim(team.names.events, maxlen=0)
            await stored.store(vectors[3])
        case "deleted":
            await client.delete(team.names.events)
        case _:
            await client.delete(team.names.events)
            await client.xadd(team.names.events, {"kind": "agent", "op": "dead", "id": "x"}, id="5-5")
    found = await found_in(cache)
    assert unseen[0] in found
    assert unseen[1] not in found


async def test_long_memory_has_all_chunks_of_its_current_content(client: Client, team: Team) -> None:
    stored, vectors = Stored(team), unit_vectors(4)
    head = await stored.store(vectors[0])
    names = team.names
    content = await client.hget(names.memory(head), "hash")
    await client.hset(names.memory(head), "pieces", "4")
    for piece, digest in ((1, content), (2, b"of an older content")):
        await client.hset(
            names.chunk(head, piece), mapping={"hash": digest, "vec16_fake": to_stored(vectors[piece], MODEL)}
        )
    cache = new_cache(client)

    async def pieces() -> list[int]:
        _, seen = await cache.snapshot("team", PUBLIC)
        return sorted(seen.pieces[np.flatnonzero(seen.chosen)].tolist())

    assert await pieces() == [0, 1]
    await client.hset(names.chunk(head, 3), mapping={"hash": content, "vec16_fake": to_stored(vectors[3], MODEL)})
    await client.xadd(names.events, {"kind": "memory", "op": "embedded", "id": head, "piece": "3", "vector": "1"})
    assert await pieces() == [0, 1, 3]


async def test_least_recently_used_mirrors_are_evicted(
    client: Client, team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = mirror_of(unit_vectors(20)).nbytes
    cache = new_cache(client, budget=size * 5 // 2)
    for number, namespace in enumerate(("one", "two", "three")):
        other = await Team(client, "fake", DIMENSION, namespace).open()
        stored = Stored(other)
        for vector in unit_vectors(20, seed=number):
            await stored.store(vector)
    for namespace in ("one", "two", "one", "three"):
        assert len(await found_in(cache, namespace)) == 20
        assert cache.nbytes <= cache.budget
    assert len(cache.mirrors) == 2
    filled: list[str] = []
    fill = mirror_cache.EventFollower.fill

    async def record_fill(self: Any, *args: Any) -> None:
        filled.append(self._keys.namespace)
        await fill(self, *args)

    monkeypatch.setattr(mirror_cache.EventFollower, "fill", record_fill)
    await found_in(cache, "one")
    await found_in(cache, "two")
    assert filled == ["two"]
    small = new_cache(client, budget=1000)
    with pytest.raises(MirrorTooLarge, match=r"bulk\.memory_bytes"):
        await found_in(small, "one")
    assert not small.mirrors


async def test_unreadable_records_are_skipped(client: Client, team: Team) -> None:
    stored, vectors = Stored(team), unit_vectors(4)
    good, *damaged = [await stored.store(vector) for vector in vectors]
    await client.hset(Keys("team").memory(damaged[0]), "expires_at", "soon")
    await client.hset(Keys("team").memory(damaged[1]), "scope", b"\xff")
    await client.hset(
        Keys("team").memory(damaged[2]), "vec16_fake", to_stored(np.full(DIMENSION, np.nan, np.float32), MODEL)
    )
    assert await found_in(new_cache(client)) == {good}


async def test_index_is_built_at_a_threshold_and_rebuilt_after_changes(client: Client, team: Team) -> None:
    stored, vectors = Stored(team), unit_vectors(300)
    for vector in vectors[:200]:
        await stored.store(vector)
    cache = new_cache(client)
    entry, _ = await cache.snapshot("team", PUBLIC)
    assert cache.index_for(entry, "IVFFlat", 201) is None
    assert entry.building is None
    assert cache.index_for(entry, "IVFFlat", 50) is None

    async def built() -> bool:
        return cache.index_for(entry, "IVFFlat", 50) is not None and entry.building is None

    await wait_until(built)
    first = entry.index
    for vector in vectors[200:249]:
        await stored.store(vector)
    await cache.snapshot("team", PUBLIC)
    assert cache.index_for(entry, "IVFFlat", 50) is first
    assert entry.building is None
    await stored.store(vectors[249])
    await cache.snapshot("team", PUBLIC)
    cache.index_for(entry, "IVFFlat", 50)

    async def rebuilt() -> bool:
        return entry.index is not first

    await wait_until(rebuilt)
    assert entry.index is not None
    assert entry.index.covered == 250
    await cache.close()
