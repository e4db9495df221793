"""Changes the model of a namespace, or makes its index anew, while searches and stores go on.

The next version of the index is built beside the one that answers, all that is there gets vectors of the next model,
and one Function lets it answer. The one before is kept up until it is dropped, so that the change can be taken back.
Every step may be done twice, and what is done is known from Redis alone: killed at any point, it is run again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import PurePath

from pydantic import BaseModel, Field

from memory_core.errors import Conflict, InvalidArgument, MemoryServiceError
from memory_core.records import redis_time
from memory_core.records.audit_entry import system_entry
from memory_core.records.keys import Keys
from memory_core.records.model import Model, Models, Phase
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store import index, sidecar
from memory_core.store.connection import store_errors
from memory_server.engine.backend import Backend
from memory_server.engine.index_definition import drift
from memory_server.engine.known_models import MODELS_SECONDS
from memory_server.index import queries as candidates
from memory_server.index import query as build
from memory_server.index.loader import Ref
from memory_server.operations.quarantine import CONSOLE
from memory_server.operations.reembed import Filling, Tell, embed_agents, embed_tasks, no_sidecar, sidecars_of
from memory_server.service import Service

log = logging.getLogger(__name__)
KEEP_SECONDS = 10.0
"""How long the index before is kept at least: until they know of the next, MODELS_SECONDS at most, servers ask it."""
_SLICE = 8
"""Records changed by one Function call: each change inserts vectors anew."""
_POLL_SECONDS = 0.1


class Index(BaseModel):
    """A model of the namespace and its index: how many pieces have its vectors, and which sidecars it has."""

    model: str
    dimension: int
    index: str
    embedded: int = 0
    sidecars: list[str] = Field(default_factory=list)


class Reindexing(BaseModel):
    """How far a change is, and what can be done next."""

    namespace: str
    pieces: int = 0
    answers: Index
    other: Index | None = None
    phase: Phase | None = None
    drift: list[str] = Field(default_factory=list)
    next: str = ""


class Reindexed(BaseModel):
    """What came of it: `asked` pieces were embedded, of which `failed` could not be, and `unreadable` were left out."""

    namespace: str
    done: str
    model: str
    index: str
    asked: int = 0
    failed: int = 0
    unreadable: int = 0
    seconds: float = 0.0


async def look(service: Service, namespace: str) -> Reindexing:
    """Say where a namespace stands.

    Raises:
        InvalidArgument: there is no such namespace.
    """
    models = await _models(service, namespace)
    keys, living = Keys(namespace), await service.backend.read(sidecar.living)
    kept = [models.current, *([models.other] if models.other else [])]
    queries = [build.everything(), *(build.with_vector(build.Query(), model) for model in kept)]
    pieces, *embedded = await service.namespaces.search(
        namespace, lambda client: _count(service.settings, client, keys, queries)
    )
    told = [
        Index(
            model=model.name,
            dimension=model.dimension,
            index=keys.index(model.version),
            embedded=number,
            sidecars=[one.id for one in living if one.model == model.name],
        )
        for model, number in zip(kept, embedded, strict=True)
    ]
    differs = await _drift(service, keys, models.current)
    return Reindexing(
        namespace=namespace,
        pieces=pieces,
        answers=told[0],
        other=told[1] if models.other else None,
        phase=models.phase,
        drift=differs,
        next=_next(models, differs),
    )


async def choose(service: Service, namespace: str, name: str | None) -> Model:
    """Find the model that a namespace is to have: the named one, the one it is being changed to, or its own.

    Raises:
        EmbeddingUnavailable: no sidecar of a new model lives. Conflict: another change is under way.
        InvalidArgument: there is no such namespace, or its own vectors lie where those of the model would.
    """
    models = await _models(service, namespace)
    current, other = models.current, models.other
    if other and (_is(other, name) if name is not None else models.phase is Phase.BUILDING):
        return other
    is_own = name is None or _is(current, name)
    if other and other.name != current.name and not (is_own and models.phase is Phase.SWITCHED):
        raise Conflict(
            f"the vectors of {other.name} are still kept",
            hint=f"redis-memory reindex --namespace {namespace} --drop-old ends that change, --back takes it back",
        )
    if name is None or is_own:
        return current
    for wanted in dict.fromkeys((name, PurePath(name).name)):
        if living := await sidecars_of(service.backend, wanted):
            return _fits(current, Model(living[0].model, living[0].dimension))
    raise no_sidecar(name)


async def would(service: Service, namespace: str, name: str | None, *, back: bool, drop_old: bool) -> str:
    """Say what a change would do; raises what it would at its beginning."""
    models = await _models(service, namespace)
    if back or drop_old:
        if models.other is None:
            raise Conflict(f"nothing is kept in {namespace}", hint="see --status")
        return f"{models.other.name} would " + ("answer again" if back and models.phase != "building" else "be dropped")
    target, keys = await choose(service, namespace, name), Keys(namespace)
    if target.name == models.current.name:
        return "the index would be made anew beside this one, which is dropped then"
    query = build.not_embedded(target, redis_time.now())
    (lacking,) = await service.namespaces.search(
        namespace, lambda client: _count(service.settings, client, keys, [query])
    )
    return f"{lacking} texts would be embedded by {target}, which would answer then"


async def change(
    service: Service,
    namespace: str,
    target: Model,
    tell: Tell,
    *,
    leave_failed: bool = False,
    keep_seconds: float = KEEP_SECONDS,
) -> Reindexed:
    """Let a model answer in a namespace; its own again is given a new index, and the one before is dropped.

    Raises:
        EmbeddingUnavailable: no sidecar of the model lives. KeyMissing: there are sensitive memories, and no master
        key. Conflict: some pieces cannot be embedded, and nobody said to leave them. StoreUnavailable, OutcomeUnknown.
    """
    started, models = time.perf_counter(), await _models(service, namespace)
    if models.phase is Phase.DROPPING:
        await _drop(service, namespace, models, tell)
        models = await _models(service, namespace)
    filling = Filling(service, namespace, target, tell)
    before = models.other if models.phase is Phase.SWITCHED and target == models.current else None
    if before is None:
        filling = await _switch(service, namespace, target, tell, leave_failed=leave_failed)
        before = models.current
    await _catch_up(filling, before)
    again = before.name == target.name
    if again:
        await drop(service, namespace, tell, keep_seconds=keep_seconds)
    now = (await _models(service, namespace)).current
    return Reindexed(
        namespace=namespace,
        done="the index was made anew" if again else "another model answers",
        model=now.name,
        index=Keys(namespace).index(now.version),
        asked=filling.asked,
        failed=len(filling.failed),
        unreadable=len(filling.unreadable),
        seconds=round(time.perf_counter() - started, 2),
    )


async def back(service: Service, namespace: str, tell: Tell) -> Reindexed:
    """Let the model and index before answer again; a change that has not come that far is given up.

    Raises:
        Conflict: there is nothing to go back to. What `change` raises: what was stored since is embedded first.
    """
    models = await _models(service, namespace)
    if models.other and models.phase is Phase.BUILDING:
        return await drop(service, namespace, tell)
    if models.other is None or models.phase is Phase.DROPPING or models.other.name == models.current.name:
        raise Conflict(f"nothing is kept to which {namespace} could go back", hint="give --model instead")
    return await change(service, namespace, models.other, tell)


async def drop(service: Service, namespace: str, tell: Tell, *, keep_seconds: float = KEEP_SECONDS) -> Reindexed:
    """Remove the index that does not answer, and the vectors of its model; of one just switched once nobody asks it."""
    started, models = time.perf_counter(), await _models(service, namespace)
    current = Keys(namespace).index(models.current.version)
    if models.other is None:
        return Reindexed(namespace=namespace, done="nothing was kept", model=models.current.name, index=current)
    while models.phase is not Phase.DROPPING:
        status = await _write(service.backend, namespace, "drop", models.other, grace=keep_seconds)
        if status == "dropping":
            break
        if status != "early":
            raise Conflict(f"another change of model came between ({status})", hint="see --status")
        await asyncio.sleep(_POLL_SECONDS)
    await _drop(service, namespace, models, tell)
    return Reindexed(
        namespace=namespace,
        done=f"{models.other.name} ({Keys(namespace).index(models.other.version)}) was dropped",
        model=models.current.name,
        index=current,
        seconds=round(time.perf_counter() - started, 2),
    )


async def _models(service: Service, namespace: str) -> Models:
    if not await service.namespaces.knows(namespace):
        raise InvalidArgument(f"nothing was ever stored in namespace {namespace}", hint="check --namespace")
    await service.namespaces.get(namespace)
    return await service.models.get(namespace, afresh=True)


async def _count(settings: Settings, client: Client, keys: Keys, queries: Sequence[build.Query]) -> list[int]:
    return await candidates.count_all(client, keys, queries, settings.search_timeout_ms)


async def _drift(service: Service, keys: Keys, model: Model) -> list[str]:
    info = await service.backend.read(lambda client: client.execute_command("FT.INFO", keys.index(model.version)))
    return drift(info, keys, service.settings.vector_store.with_model(model))


def _next(models: Models, differs: Sequence[str]) -> str:
    match models.phase:
        case Phase.BUILDING:
            return "reindex goes on; --back gives it up"
        case Phase.SWITCHED:
            return "--back lets the model before answer again; --drop-old ends the change"
        case Phase.DROPPING:
            return "--drop-old goes on"
        case None:
            return "reindex makes the index anew" if differs else ""


def _is(model: Model, name: str) -> bool:
    """Whether a model is meant, by its name or by the path of its folder."""
    return model.name in {name, PurePath(name).name}


def _fits(current: Model, new: Model) -> Model:
    if current.field == new.field:
        raise InvalidArgument(
            f"vectors of {new} would lie in the field of {current}", hint="have the new model's folder named otherwise"
        )
    return new


async def _switch(service: Service, namespace: str, target: Model, tell: Tell, *, leave_failed: bool) -> Filling:
    """Build all that is missing, and let it answer."""
    before, target = (await _models(service, namespace)).current, await _begin(service, namespace, target)
    await _build(service, namespace, target, tell)
    filling = await Filling(service, namespace, target, tell).run()
    if filling.failed and not leave_failed:
        raise _failure(target, filling.failed)
    await _mark(service.backend, namespace, filling.failed)
    await embed_tasks(service, namespace, target, before)
    await _step(service.backend, namespace, "switch", target)
    await asyncio.sleep(MODELS_SECONDS)  # what servers do meanwhile, they do by the model before
    return filling


async def _begin(service: Service, namespace: str, target: Model) -> Model:
    """Have everything that is stored from now on get vectors of the model too; give it with its index's version."""
    await _step(service.backend, namespace, "begin", target)
    models = await _models(service, namespace)
    if models.other is None or models.other.name != target.name:
        raise Conflict("another change of model came between", hint="see --status")
    return models.other


async def _build(service: Service, namespace: str, target: Model, tell: Tell) -> None:
    """Make the index, and wait until it covers what is there."""
    keys, client = Keys(namespace), await service.backend.client()
    async with store_errors():
        await index.ensure_index(client, keys, target, service.settings.vector_store)
    while True:
        covered = await service.backend.read(lambda client: index.coverage(client, keys.index(target.version)))
        share = covered.progress if covered else 0.0
        tell("indexing", int(share * 100), 100)
        if share >= 1:
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _catch_up(filled: Filling, before: Model) -> None:
    """See to what came between; that all is switched by now is not to be denied where it fails."""
    service, namespace, target = filled.service, filled.namespace, filled.model
    known = {*filled.unreadable, *filled.failed}
    try:
        await Filling(service, namespace, target, filled.tell, unreadable=known).run()
        if target.name != before.name:
            await embed_tasks(service, namespace, target, before)
            await embed_agents(service, namespace, target)
    except MemoryServiceError as error:
        log.warning("%s answers in %s, but what was stored meanwhile waits: %s", target.name, namespace, error.message)


async def _mark(backend: Backend, namespace: str, refs: Sequence[Ref], remove: str | None = None) -> None:
    """Have pieces say anew of which models they have vectors and which they wait for."""
    keys = Keys(namespace)
    for start in range(0, len(refs), _SLICE):
        names = [keys.hash_of_chunk(ref.memory_id, ref.chunk) for ref in refs[start : start + _SLICE]]
        await backend.write("rm1_mark_vectors", names, repeatable=True, remove=remove)


async def _drop(service: Service, namespace: str, models: Models, tell: Tell) -> None:
    """Remove what is left of the other model, then forget it."""
    keys, other = Keys(namespace), models.other
    assert other is not None
    client = await service.backend.client()
    async with store_errors():
        await client.ft(keys.index(models.current.version)).aliasupdate(keys.index_alias)
        await index.drop_index(client, keys.index(other.version))
        if other.name != models.current.name:
            await index.drop_index(client, keys.task_index(other.name))
            await client.delete(keys.jobs(other.name))
    if other.name != models.current.name:
        await _remove_vectors(service, namespace, other, tell)
    await _step(service.backend, namespace, "forget", other)


async def _remove_vectors(service: Service, namespace: str, other: Model, tell: Tell) -> None:
    keys, concerned, timeout = Keys(namespace), build.concerned_with(other), service.settings.search_timeout_ms

    async def fetch(client: Client) -> tuple[list[Ref], int]:
        left = await candidates.count(client, keys, concerned, timeout)
        return await candidates.some(client, keys, concerned, limit=1000, timeout_ms=timeout), left

    total = 0
    while True:
        refs, left = await service.namespaces.search(namespace, fetch)
        total = max(total, left)
        tell("removing", total - left, total)
        if not refs:
            return
        await _mark(service.backend, namespace, refs, other.field)


async def _step(backend: Backend, namespace: str, step: str, model: Model) -> None:
    """Do one step of a change.

    Raises:
        Conflict: another change came between.
    """
    status = await _write(backend, namespace, step, model)
    if status not in {"begun", "switched", "dropping", "forgotten"}:
        raise Conflict(f"{step}: another change of model came between ({status})", hint="see --status")


async def _write(backend: Backend, namespace: str, step: str, model: Model, *, grace: float = 0.0) -> str:
    keys = Keys(namespace)
    answer = await backend.write(
        "rm1_change_model",
        [keys.meta, keys.audit, keys.counters],
        repeatable=step != "switch",
        step=step,
        model=model.name,
        field=model.field,
        dimension=model.dimension,
        alias=keys.index_alias,
        index=keys.index(0)[:-1],
        grace=grace,
        audit=system_entry(CONSOLE, f"reindex: {step}"),
    )
    return answer["status"]


def _failure(target: Model, failed: Sequence[Ref]) -> Conflict:
    named = ", ".join(ref.memory_id for ref in failed[:3]) + (", …" if len(failed) > 3 else "")
    return Conflict(
        f"{len(failed)} texts could not be embedded by {target.name} ({named}); nothing is switched",
        hint="the sidecar's log says why; mend that and run it again, or add --leave-failed: they are found by words",
    )
