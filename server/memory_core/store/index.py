"""The search indexes of a namespace, as schemas/memory.yaml and schemas/task.yaml define them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis import exceptions as redis_errors
from redis.commands.search.index_definition import IndexDefinition, IndexType

from memory_core.errors import ModelMismatch, StoreUnavailable
from memory_core.package_data import resource
from memory_core.records import keys
from memory_core.records.model import Model, Models, read_models
from memory_core.redis_client import Client
from memory_core.settings.groups import HnswSettings
from memory_core.settings.settings import VectorStoreSettings

if TYPE_CHECKING:
    from redisvl.schema import IndexSchema

_ATTEMPTS = 3
_MISSING = ("no such index", "unknown index name")
_MEMORY, _TASK = "schemas/memory.yaml", "schemas/task.yaml"


async def ensure_namespace(client: Client, namespace: str, settings: VectorStoreSettings) -> Models:
    """Register a namespace, make its missing indexes, alias and job group, and return its models.

    A new namespace gets the model of the settings; others keep theirs until `reindex` changes it.
    An older index gets the fields that the schema gained; Redis then reads all records again.
    """
    names = keys.Keys(namespace)
    models, is_new = await _claim(client, names, settings)
    if not await client.sismember(keys.NAMESPACES, namespace):
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
    """Make the missing indexes and job group of a model. Writes nothing if all are there: a full Redis refuses it."""
    index = names.index(model.version)
    # A full Redis refuses this even if the group is there. If it is not, a sidecar makes it.
    with suppress(redis_errors.OutOfMemoryError), _ignoring("busygroup"):
        await client.xgroup_create(names.jobs(model.name), keys.GROUP, id="0", mkstream=True)
    known = await _known_fields(client, index)
    prefixes, alias = [names.memory_prefix, names.chunk_prefix], names.index_alias if behind_alias else None
    fields = memory_fields(model, settings.hnsw)
    if known is None or (alias and await _known_fields(client, alias) is None):
        await create_index(client, index, prefixes, fields, scan=scan, alias=alias)
    if known is not None:
        await _add_fields(client, index, [field for field in fields if (field.as_name or field.name) not in known])
    if await _known_fields(client, names.task_index(model.field)) is None:
        fields = _read_schema(_TASK, model).redis_fields
        await create_index(client, names.task_index(model.field), [names.task_vector("")], fields, scan=scan)


async def drop_index(client: Client, index: str) -> None:
    """Remove an index, but not its records."""
    with _ignoring(*_MISSING):
        await client.ft(index).dropindex()


async def check_model(client: Client, names: keys.Keys, model: str, dimension: int) -> None:
    """Raise ModelMismatch unless a namespace keeps vectors of a model."""
    models = await read_models(client, names)
    if models is not None and not models.serves(model, dimension):
        raise ModelMismatch(
            f"namespace {names.namespace} is indexed for {models.current}, not for {model} ({dimension})",
            hint=f"use --model {models.current.name}, or change the namespace's: redis-memory reindex --namespace"
            f" {names.namespace} --model {model}",
        )


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many chunks an index covers, and which share of all chunks, 0 to 1."""

    documents: int
    progress: float


async def coverage(client: Client, index: str) -> Coverage | None:
    """Return how much of a namespace an index or alias covers; None if there is no index."""
    info = await _info(client, index)
    if info is None:
        return None
    is_building = int(info.get(b"indexing", 0))
    progress = min(float(info.get(b"percent_indexed", 0)), 0.999) if is_building else 1.0
    return Coverage(int(info.get(b"num_docs", 0)), progress)


async def failures(client: Client, names: keys.Keys) -> int:
    """Count the records that the index refused because of an unreadable field."""
    info = await client.execute_command("FT.INFO", names.index_alias)
    return int(info.get(b"hash_indexing_failures", 0))


def is_missing_index(error: redis_errors.ResponseError) -> bool:
    """Whether a search failed because its index does not exist."""
    return any(text in str(error).lower() for text in _MISSING)


async def _claim(client: Client, names: keys.Keys, settings: VectorStoreSettings) -> tuple[Models, bool]:
    """Set the model of a new namespace. Return the models, and whether the namespace is new and so has no memories."""
    if all(await client.hmget(names.meta, ["model", "dimension", "field"])):
        return await read_models(client, names) or Models(settings.model), False
    is_new = await client.hsetnx(names.meta, "model", settings.embedding_model)
    model = (await client.hget(names.meta, "model") or b"").decode()
    await client.hsetnx(names.meta, "dimension", str(settings.vector_dimension))
    await client.hsetnx(names.meta, "field", keys.vector_field(model))
    return await read_models(client, names) or Models(settings.model), bool(is_new)


async def _known_fields(client: Client, alias: str) -> set[str] | None:
    info = await _info(client, alias)
    return None if info is None else {attribute[b"attribute"].decode() for attribute in info[b"attributes"]}


async def _info(client: Client, index: str) -> dict[bytes, Any] | None:
    with _ignoring(*_MISSING):
        return await client.execute_command("FT.INFO", index)
    return None


async def _add_fields(client: Client, index: str, fields: list[Any]) -> None:
    for field in fields:
        with _ignoring("duplicate field"):
            await client.ft(index).alter_schema_add(field)


async def create_index(
    client: Client, index: str, prefixes: list[str], fields: list[Any], *, scan: bool, alias: str | None = None
) -> None:
    """Make a missing index and its alias. `scan` also indexes existing records, and walks all of Redis."""
    definition = IndexDefinition(prefix=prefixes, index_type=IndexType.HASH)
    search = client.ft(index)
    for _ in range(_ATTEMPTS):
        with _ignoring("already exists"):
            await search.create_index(
                fields, definition=definition, stopwords=[], no_term_offsets=True, skip_initial_scan=not scan
            )  # no query has phrases
        if not alias:
            return
        with _ignoring(*_MISSING):
            with _ignoring("already exists"):
                await search.aliasadd(alias)
            return
        scan = True
    raise StoreUnavailable(f"another process keeps dropping the index {index}", retry_after=1.0)


@contextmanager
def _ignoring(*texts: str) -> Generator[None]:
    """Ignore a refusal of Redis whose message contains one of the texts, in lower case."""
    try:
        yield
    except redis_errors.ResponseError as error:
        if not any(text in str(error).lower() for text in texts):
            raise


def memory_fields(model: Model, graph: HnswSettings) -> list[Any]:
    """Return the fields of the memory index for a model and its graph settings."""
    schema = _read_schema(_MEMORY, model, graph.model_dump())
    schema.fields["source_text"].path = "source"
    return schema.redis_fields


def _read_schema(path: str, model: Model, graph: dict[str, Any] | None = None) -> IndexSchema:
    """Read a schema whose field `vec` is the hash field with the vectors of a model."""
    from redisvl.schema import IndexSchema  # takes 150 ms, and most processes make no index
    from redisvl.schema.fields import VectorDataType

    schema = IndexSchema.from_yaml(str(resource(path)))
    vectors: Any = schema.fields["vec"]
    vectors.path = model.field
    datatype = VectorDataType(model.precision.upper())
    vectors.attrs = vectors.attrs.model_copy(update={"dims": model.dimension, "datatype": datatype, **(graph or {})})
    return schema


def search_error(error: redis_errors.ResponseError) -> Exception:
    """Return StoreUnavailable for a search that timed out, else the error itself."""
    if "timeout" in str(error).lower():
        return StoreUnavailable("the search timed out", hint="narrow it by filters, or retry", retry_after=1.0)
    return error
