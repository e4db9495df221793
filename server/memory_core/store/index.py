"""Makes and watches the search index of a namespace, from schemas/memory.yaml."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from redis import exceptions as redis_errors

from memory_core.errors import ModelMismatch, StoreUnavailable
from memory_core.package_data import resource
from memory_core.records import keys
from memory_core.records.model import Model, Models, read_models
from memory_core.settings.settings import VectorStoreSettings
from memory_core.store.connection import Client

_ATTEMPTS = 3
_MEMORY, _TASK = "schemas/memory.yaml", "schemas/task.yaml"


async def ensure_namespace(client: Client, namespace: str, settings: VectorStoreSettings) -> Models:
    """Register the namespace and make its indexes, alias and job group where they are missing; give its models.

    A new namespace gets the model of the settings; one that is there keeps its own until it is changed by `reindex`.
    An index made before a field was added to the schema gets that field; Redis then reads all records again.
    """
    names = keys.Keys(namespace)
    models, is_new = await _claim(client, names, settings)
    await client.sadd(keys.NAMESPACES, namespace)
    await ensure_index(client, names, models.current, settings, scan=not is_new, behind_alias=True)
    return models


async def ensure_index(
    client: Client,
    names: keys.Keys,
    model: Model,
    settings: VectorStoreSettings,
    *,
    scan: bool = True,
    behind_alias: bool = False,
) -> None:
    """Make the indexes and the job group of a model where they are missing."""
    own, index = model.within(settings), names.index(model.version)
    await _create_group(client, names.jobs(model.name))
    known = await _known_fields(client, index)
    prefixes, alias = [names.memory_prefix, names.chunk_prefix], names.index_alias if behind_alias else None
    await create_index(client, index, prefixes, memory_fields(own), scan=scan, alias=alias)
    if known is not None and {field["name"] for field in _declared(_MEMORY)["fields"]} - known:
        await _add_fields(client, index, [field for field in memory_fields(own) if _alias(field) not in known])
    if await _known_fields(client, names.task_index(model.name)) is None:
        fields = _fields(_TASK, {"dims": own.vector_dimension})
        for field in fields:
            field.name, field.as_name = model.field, "vec"
        await create_index(client, names.task_index(model.name), [names.task_vector("")], fields, scan=scan)


async def drop_index(client: Client, index: str) -> None:
    """Remove an index and none of what it covers."""
    try:
        await client.ft(index).dropindex()
    except redis_errors.ResponseError as error:
        if not is_missing_index(error):
            raise


async def check_model(client: Client, names: keys.Keys, model: str, dimension: int) -> None:
    """Compare a model with those that the namespace keeps vectors of.

    Raises:
        ModelMismatch: it is none of them.
    """
    models = await read_models(client, names)
    if models is not None and not models.serves(model, dimension):
        raise ModelMismatch(
            f"namespace {names.namespace} is indexed for {models.current}, not for {model} ({dimension})",
            hint=f"use --model {models.current.name}, or change the namespace's: redis-memory reindex --namespace"
            f" {names.namespace} --model {model}",
        )


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many pieces an index covers, and which share of those there are, 0 to 1."""

    documents: int
    progress: float


async def coverage(client: Client, index: str) -> Coverage | None:
    """Say how much of a namespace an index or alias covers; None when there is none."""
    try:
        info = await client.execute_command("FT.INFO", index)
    except redis_errors.ResponseError as error:
        if is_missing_index(error):
            return None
        raise
    is_building = int(info.get(b"indexing", 0))
    progress = min(float(info.get(b"percent_indexed", 0)), 0.999) if is_building else 1.0
    return Coverage(int(info.get(b"num_docs", 0)), progress)


async def failures(client: Client, names: keys.Keys) -> int:
    """Count the records that the index refused, because a field could not be read."""
    info = await client.execute_command("FT.INFO", names.index_alias)
    return int(info.get(b"hash_indexing_failures", 0))


def is_missing_index(error: redis_errors.ResponseError) -> bool:
    """Whether a search failed because its index does not exist."""
    text = str(error).lower()
    return "no such index" in text or "unknown index name" in text


async def _claim(client: Client, names: keys.Keys, settings: VectorStoreSettings) -> tuple[Models, bool]:
    """Set the model of a namespace that has none; give its models, and whether it is new and so holds no memories."""
    is_new = await client.hsetnx(names.meta, "model", settings.embedding_model)
    model = (await client.hget(names.meta, "model") or b"").decode()
    await client.hsetnx(names.meta, "dimension", str(settings.vector_dimension))
    await client.hsetnx(names.meta, "field", keys.vector_field(model))
    return await read_models(client, names) or Models(Model.configured(settings)), bool(is_new)


async def _known_fields(client: Client, alias: str) -> set[str] | None:
    """Name what an index covers; None when there is none."""
    try:
        info = await client.execute_command("FT.INFO", alias)
    except redis_errors.ResponseError as error:
        if is_missing_index(error):
            return None
        raise
    return {attribute[b"attribute"].decode() for attribute in info[b"attributes"]}


async def _add_fields(client: Client, index: str, fields: list[Any]) -> None:
    for field in fields:
        try:
            await client.ft(index).alter_schema_add(field)
        except redis_errors.ResponseError as error:
            if "duplicate field" not in str(error).lower():
                raise


async def _create_group(client: Client, stream: str) -> None:
    try:
        await client.xgroup_create(stream, keys.GROUP, id="0", mkstream=True)
    except redis_errors.ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise


async def create_index(
    client: Client, index: str, prefixes: list[str], fields: list[Any], *, scan: bool, alias: str | None = None
) -> None:
    """Make an index and its alias unless they are there; the scan for records there are already walks all of Redis.

    Raises:
        StoreUnavailable: it is dropped as fast as it is made.
    """
    from redis.commands.search.index_definition import IndexDefinition, IndexType

    definition = IndexDefinition(prefix=prefixes, index_type=IndexType.HASH)
    search = client.ft(index)
    for _ in range(_ATTEMPTS):
        await _unless_there(
            search.create_index(fields, definition=definition, stopwords=[], skip_initial_scan=not scan)
        )
        try:
            if alias:
                await _unless_there(search.aliasadd(alias))
        except redis_errors.ResponseError as error:
            if not is_missing_index(error):
                raise
        else:
            return
        scan = True
    raise StoreUnavailable(f"the index {index} is dropped as fast as it is made", retry_after=1.0)


async def _unless_there(making: Awaitable[Any]) -> None:
    try:
        await making
    except redis_errors.ResponseError as error:
        if "already exists" not in str(error):
            raise


def memory_fields(settings: VectorStoreSettings) -> list[Any]:
    """Read the schema and map its aliases to hash fields."""
    fields = _fields(_MEMORY, {"dims": settings.vector_dimension} | settings.hnsw.model_dump())
    hash_fields = {"source_text": "source", "vec": keys.vector_field(settings.embedding_model)}
    for field in fields:
        alias = field.name
        if alias in hash_fields:
            field.name, field.as_name = hash_fields[alias], alias
    return fields


def _fields(schema: str, vector: dict[str, Any]) -> list[Any]:
    """Read a schema through RedisVL, with these attributes of its vector field."""
    from redisvl.schema import IndexSchema

    declared = _declared(schema)
    for field in declared["fields"]:
        if field["name"] == "vec":
            field["attrs"] |= vector
    return IndexSchema.from_dict(declared).redis_fields


def _declared(schema: str) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(resource(schema).read_text())


def _alias(field: Any) -> str:
    return field.as_name or field.name
