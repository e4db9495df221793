"""Changes the model of a namespace or the format of its vectors, or rebuilds its index; searches and stores continue.

It builds the next version of the index beside the current one, embeds everything with the next model, and switches with
one Function call. The previous index stays up to date until it is dropped, so the change can be undone. Every step can
be repeated and the progress is in Redis, so an interrupted run can be started again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from pydantic import BaseModel, Field

from memory_core.errors import Conflict, InvalidArgument, MemoryServiceError
from memory_core.records import redis_time
from memory_core.records.audit_entry import system_entry
from memory_core.records.keys import Keys
from memory_core.records.model import Model, Models, Phase
from memory_core.redis_client import Client
from memory_core.slices import slices
from memory_core.store import index, sidecar
from memory_core.store.connection import store_errors
from memory_server.contract.untrusted_text import counted
from memory_server.engine.index_definition import drift
from memory_server.engine.known_models import MODELS_SECONDS
from memory_server.engine.redis_backend import Backend
from memory_server.index import queries as candidates
from memory_server.index import query_builder as build
from memory_server.index.loader import Ref
from memory_server.operations.quarantine import CONSOLE
from memory_server.operations.reembed import (
    Filling,
    Progress,
    convert,
    embed_agents,
    embed_tasks,
    no_sidecar,
    sidecars_of,
)
from memory_server.service import Service

log = logging.getLogger(__name__)
KEEP_SECONDS = 10.0
"""How long the previous index is kept at least. Servers may use it for MODELS_SECONDS after the switch."""
_SLICE = 4  # hashes that one Function call inserts into the graph twice, so that Redis never stalls
"""Records changed by one Function call: each change inserts vectors again."""
_POLL_SECONDS = 0.1
_NEXT = {
    Phase.BUILDING: "reindex continues; --back cancels",
    Phase.SWITCHED: "--back returns to the previous model; --drop-old finishes the change",
    Phase.DROPPING: "--drop-old continues",
}
_NEXT_BACK = {
    Phase.BUILDING: "--back continues",
    Phase.SWITCHED: "--drop-old finishes the return; --model, or reindex for half precision, goes forward again",
}


class Index(BaseModel):
    """A model of the namespace, its index, how many chunks have its vectors, and its living sidecars."""

    model: str
    dimension: int
    precision: str
    index: str
    embedded: int = 0
    sidecars: list[str] = Field(default_factory=list)


class Reindexing(BaseModel):
    """The progress of a change, and the possible next steps."""

    namespace: str
    pieces: int = 0
    answers: Index
    other: Index | None = None
    phase: Phase | None = None
    drift: list[str] = Field(default_factory=list)
    next: str = ""


class Reindexed(BaseModel):
    """The result: `asked` chunks were queued, `failed` of them could not be embedded, `unreadable` were left out."""

    namespace: str
    done: str
    model: str
    index: str
    asked: int = 0
    failed: int = 0
    unreadable: int = 0
    seconds: float = 0.0


async def look(service: Service, namespace: str) -> Reindexing:
    """Return the status of a namespace; raises InvalidArgument if it does not exist."""
    models = await _models(service, namespace)
    keys, living = Keys(namespace), await service.backend.read(sidecar.living)
    both = [models.current, *([models.other] if models.other else [])]
    queries = [build.everything(), *(build.with_vector(build.Query(), model) for model in both)]
    pieces, *embedded = await _count(service, keys, queries)
    indexes = [
        Index(
            model=model.name,
            dimension=model.dimension,
            precision=model.precision,
            index=keys.index(model.version),
            embedded=number,
            sidecars=[one.id for one in living if one.model == model.name],
        )
        for model, number in zip(both, embedded, strict=True)
    ]
    info = await service.backend.read(lambda client: client.execute_command("FT.INFO", indexes[0].index))
    differs = drift(info, keys, service.settings.vector_store.with_model(models.current))
    return Reindexing(
        namespace=namespace,
        pieces=pieces,
        answers=indexes[0],
        other=indexes[1] if models.other else None,
        phase=models.phase,
        drift=differs,
        next=_next(models) or ("reindex rebuilds the index" if differs else ""),
    )


def _next(models: Models) -> str:
    if models.phase is None:
        return ""
    steps = _NEXT | _NEXT_BACK if models.goes_back else _NEXT
    return steps[models.phase]


async def choose(service: Service, namespace: str, name: str | None) -> Model:
    """Find the target model: the named one, that of an unfinished change, or the current one in half precision.

    Raises:
        EmbeddingUnavailable: no sidecar of a new model is alive. Conflict: another change is in progress.
        InvalidArgument: there is no such namespace, or both models' vectors would be in the same field.
    """
    models = await _models(service, namespace)
    current, other = models.current, models.other
    is_own = name is None or _is(current, name)
    if other and _is_reverted(models) and is_own and other.name == current.name:
        return other
    if other and models.phase is Phase.BUILDING and (name is None or (is_own and other.name == current.name)):
        return other
    if other and name is not None and not is_own and _is(other, name):
        return other
    if other and other.field != current.field and not (is_own and models.phase is Phase.SWITCHED):
        hint = f"redis-memory reindex --namespace {namespace} --drop-old finishes that change, --back undoes it"
        raise Conflict(f"the vectors of {_kept(current, other)} are still kept", hint=hint)
    if name is None or is_own:
        return current if other else replace(current, half=True)
    for wanted in dict.fromkeys((name, PurePath(name).name)):
        if living := await sidecars_of(service.backend, wanted):
            new = Model(living[0].model, living[0].dimension)
            if current.key == new.key:
                message = f"vectors of {new} would be in the field of {current}"
                raise InvalidArgument(message, hint="rename the folder of the new model")
            return new
    raise no_sidecar(name)


async def would(service: Service, namespace: str, name: str | None, *, back: bool, drop_old: bool) -> str:
    """Describe what a change would do; raises the same errors as its start."""
    models = await _models(service, namespace)
    if back or drop_old:
        if models.other is None:
            raise Conflict(f"{namespace} has no previous model", hint="see --status")
        if back and _is_reverted(models):
            return f"{_kept(models.other, models.current)} answers again already"
        returns = back and (models.phase is not Phase.BUILDING or models.goes_back)
        outcome = "answer again" if returns else "be dropped"
        return f"{_kept(models.current, models.other)} would {outcome}"
    target, keys = await choose(service, namespace, name), Keys(namespace)
    if target.field == models.current.field:
        return "the index would be rebuilt beside the current one, which would then be dropped"
    if target.name == models.current.name:
        (left,) = await _count(service, keys, [build.other_format(models.current, target)])
        return f"{counted(left, 'vector')} would be converted to {target.precision}, which would then answer"
    (lacking,) = await _count(service, keys, [build.not_embedded(target, redis_time.now())])
    return f"{counted(lacking, 'text')} would be embedded by {target}, which would then answer"


async def change(
    service: Service,
    namespace: str,
    target: Model,
    progress: Progress,
    *,
    leave_failed: bool = False,
    keep_seconds: float = KEEP_SECONDS,
) -> Reindexed:
    """Switch a namespace to a model. For its current model, rebuild the index and drop the previous one.

    Raises:
        EmbeddingUnavailable: no sidecar of the model is alive. KeyMissing: sensitive memories need a master key.
        Conflict: some chunks cannot be embedded, without `leave_failed`. StoreUnavailable, OutcomeUnknown.
    """
    started, models = time.perf_counter(), await _models(service, namespace)
    if models.phase is Phase.DROPPING:
        await _drop(service, namespace, models, progress)
        models = await _models(service, namespace)
    filling = Filling(service, namespace, target, progress)
    before = models.other if models.phase is Phase.SWITCHED and target == models.current else None
    if before is None:
        filling = await _switch(service, namespace, target, progress, leave_failed=leave_failed)
        before = models.current
    await _catch_up(filling, before)
    rebuilt = before.field == target.field
    if rebuilt:
        await drop(service, namespace, progress, keep_seconds=keep_seconds)
    now = (await _models(service, namespace)).current
    return Reindexed(
        namespace=namespace,
        done=_done(before, now),
        model=now.name,
        index=Keys(namespace).index(now.version),
        asked=filling.asked,
        failed=len(filling.failed),
        unreadable=len(filling.unreadable),
        seconds=round(time.perf_counter() - started, 2),
    )


def _done(before: Model, now: Model) -> str:
    if before.field == now.field:
        return "the index was rebuilt"
    return f"{now.precision} vectors answer" if before.name == now.name else "another model answers"


def _kept(current: Model, other: Model) -> str:
    """Name the other model, by its format if only that differs."""
    return f"{other.name} in {other.precision}" if other.name == current.name else other.name


async def back(service: Service, namespace: str, progress: Progress) -> Reindexed:
    """Switch back to the previous model, or cancel a change that has not switched. Repeated, it goes on, or is done.

    Raises Conflict, and as `change`.
    """
    models = await _models(service, namespace)
    if models.other and models.phase is Phase.BUILDING and not models.goes_back:
        return await drop(service, namespace, progress)
    if models.other is None or models.phase is Phase.DROPPING or models.other.field == models.current.field:
        raise Conflict(f"{namespace} has no previous model", hint="use --model instead")
    if not _is_reverted(models):
        return await change(service, namespace, models.other, progress)
    found = await change(service, namespace, models.current, progress)
    return found.model_copy(update={"done": f"{_kept(models.other, models.current)} answers again already"})


def _is_reverted(models: Models) -> bool:
    """Whether `back` has switched to the previous model."""
    return models.phase is Phase.SWITCHED and models.goes_back


async def drop(
    service: Service, namespace: str, progress: Progress, *, keep_seconds: float = KEEP_SECONDS
) -> Reindexed:
    """Delete the inactive index and its model's vectors; after a switch, only once no server uses them."""
    started, models = time.perf_counter(), await _models(service, namespace)
    current = Keys(namespace).index(models.current.version)
    if models.other is None:
        done = "there was no previous index"
        return Reindexed(namespace=namespace, done=done, model=models.current.name, index=current)
    if models.phase is not Phase.DROPPING:
        while await _step(service.backend, namespace, "drop", models.other, grace=keep_seconds) == "early":
            await asyncio.sleep(_POLL_SECONDS)
    await _drop(service, namespace, models, progress)
    return Reindexed(
        namespace=namespace,
        done=f"{_kept(models.current, models.other)} ({Keys(namespace).index(models.other.version)}) was dropped",
        model=models.current.name,
        index=current,
        seconds=round(time.perf_counter() - started, 2),
    )


async def _models(service: Service, namespace: str) -> Models:
    if not await service.namespaces.knows(namespace):
        raise InvalidArgument(f"nothing was ever stored in namespace {namespace}", hint="check --namespace")
    await service.namespaces.get(namespace)
    return await service.models.get(namespace, afresh=True)


async def _count(service: Service, keys: Keys, queries: Sequence[build.Query]) -> list[int]:
    timeout = service.settings.search_timeout_ms
    return await service.namespaces.search(
        keys.namespace, lambda client: candidates.count_all(client, keys, queries, timeout)
    )


def _is(model: Model, name: str) -> bool:
    """Whether `name` is the name of a model or the path of its folder."""
    return model.name in {name, PurePath(name).name}


async def _switch(
    service: Service, namespace: str, target: Model, progress: Progress, *, leave_failed: bool
) -> Filling:
    before, target = (await _models(service, namespace)).current, await _begin(service, namespace, target)
    await _build(service, namespace, target, progress)
    if target.name == before.name and target.field != before.field:
        await convert(service, namespace, before, target, progress)
    filling = await Filling(service, namespace, target, progress).run()
    if filling.failed and not leave_failed:
        named = ", ".join(ref.memory_id for ref in filling.failed[:3]) + (", …" if len(filling.failed) > 3 else "")
        failed = counted(len(filling.failed), "text")
        raise Conflict(
            f"{failed} could not be embedded by {target.name} ({named}); the model is unchanged",
            hint="fix the cause (see the sidecar's log) and run it again, or add --leave-failed (keywords find them)",
        )
    await _mark(service.backend, namespace, filling.failed)
    await embed_tasks(service, namespace, target, before)
    await _step(service.backend, namespace, "switch", target)
    await asyncio.sleep(MODELS_SECONDS)  # until then, servers may use the previous model
    return filling


async def _begin(service: Service, namespace: str, target: Model) -> Model:
    """From now on, stores embed with this model too. Return the model with the version of its index."""
    await _step(service.backend, namespace, "begin", target)
    models = await _models(service, namespace)
    if models.other is None or models.other.field != target.field:
        raise Conflict("another change of model interfered", hint="see --status")
    return models.other


async def _build(service: Service, namespace: str, target: Model, progress: Progress) -> None:
    keys, client = Keys(namespace), await service.backend.client()
    async with store_errors():
        await index.ensure_index(client, keys, target, service.settings.vector_store)
    while True:
        covered = await service.backend.read(lambda client: index.coverage(client, keys.index(target.version)))
        share = covered.progress if covered else 0.0
        progress("indexing", int(share * 100), 100)
        if share >= 1:
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _catch_up(filled: Filling, before: Model) -> None:
    """Embed what was stored before the switch was known. The switch is done, so failures are only logged."""
    service, namespace, target = filled.service, filled.namespace, filled.model
    known = {*filled.unreadable, *filled.failed}
    try:
        await Filling(service, namespace, target, filled.progress, unreadable=known).run()
        if target.field != before.field:
            await embed_tasks(service, namespace, target, before)
        if target.name != before.name:
            await embed_agents(service, namespace, target)
    except MemoryServiceError as error:
        log.warning("%s answers in %s; recent texts are not embedded yet: %s", target.name, namespace, error.message)


async def _mark(backend: Backend, namespace: str, refs: Sequence[Ref], remove: str | None = None) -> None:
    keys = Keys(namespace)
    for part in slices(refs, _SLICE):
        names = [keys.hash_of_chunk(ref.memory_id, ref.chunk) for ref in part]
        await backend.write("rm1_mark_vectors", names, repeatable=True, remove=remove)


async def _drop(service: Service, namespace: str, models: Models, progress: Progress) -> None:
    keys, other = Keys(namespace), models.other
    assert other is not None
    client = await service.backend.client()
    async with store_errors():
        await client.ft(keys.index(models.current.version)).aliasupdate(keys.index_alias)
        await index.drop_index(client, keys.index(other.version))
        if other.field != models.current.field:
            await index.drop_index(client, keys.task_index(other.field))
        if other.name != models.current.name:
            await client.delete(keys.jobs(other.name))
    if other.field != models.current.field:
        await _remove_vectors(service, namespace, other, progress)
    await _step(service.backend, namespace, "forget", other)


async def _remove_vectors(service: Service, namespace: str, other: Model, progress: Progress) -> None:
    keys, concerned, timeout = Keys(namespace), build.concerned_with(other), service.settings.search_timeout_ms

    async def fetch(client: Client) -> tuple[list[Ref], int]:
        left = await candidates.count(client, keys, concerned, timeout)
        return await candidates.some(client, keys, concerned, limit=1000, timeout_ms=timeout), left

    total = 0
    while True:
        refs, left = await service.namespaces.search(namespace, fetch)
        total = max(total, left)
        progress("removing", total - left, total)
        if not refs:
            return
        await _mark(service.backend, namespace, refs, other.field)


async def _step(backend: Backend, namespace: str, step: str, model: Model, *, grace: float = 0.0) -> str:
    """Do one step of a change, and return the new status; raises Conflict if another change interfered."""
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
    if answer["status"] not in {"begun", "switched", "early", "dropping", "forgotten"}:
        raise Conflict(f"{step}: another change of model interfered ({answer['status']})", hint="see --status")
    return answer["status"]
