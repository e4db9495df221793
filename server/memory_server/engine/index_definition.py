"""Compares a namespace's index with the one that this release would create."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from memory_core.records.keys import Keys
from memory_core.records.model import read_models
from memory_core.redis_client import Client
from memory_core.settings.settings import VectorStoreSettings
from memory_core.store.connection import store_errors
from memory_core.store.index import memory_fields

log = logging.getLogger(__name__)
_FIELD_FLAGS = ("CASESENSITIVE", "NOSTEM", "SORTABLE")
_VECTOR_ATTRIBUTES = {
    "DIM": "dim",
    "DISTANCE_METRIC": "distance_metric",
    "M": "M",
    "EF_CONSTRUCTION": "ef_construction",
}
"""Vector attributes by their names in FT.CREATE and FT.INFO. Others can be set per query."""

Traits = dict[str, str]


class DriftWarnings:
    """Logs, once per namespace and process, what `reindex` would change."""

    def __init__(self, settings: VectorStoreSettings) -> None:
        self._settings = settings
        self._checked: set[str] = set()

    async def once(self, client: Client, keys: Keys) -> None:
        """Check a namespace once, in a thread, because building the definition is slow. Raises StoreUnavailable."""
        if keys.namespace in self._checked:
            return
        async with store_errors():
            models = await read_models(client, keys)
            if models is None:
                return
            info = await client.execute_command("FT.INFO", keys.index(models.current.version))
        self._checked.add(keys.namespace)
        settings, command = self._settings, f"redis-memory reindex --namespace {keys.namespace}"
        if models.current.name != settings.embedding_model:
            message = "namespace %s uses the model %s, the settings name %s; to change it: %s --model %s"
            new = settings.embedding_model
            log.warning(message, keys.namespace, models.current.name, new, command, new)
        differences = await asyncio.to_thread(drift, info, keys, settings.with_model(models.current))
        if differences:
            message = "the index of namespace %s differs from this release's: %s; to rebuild it: %s"
            log.warning(message, keys.namespace, "; ".join(differences), command)


def drift(info: dict[bytes, Any], keys: Keys, settings: VectorStoreSettings) -> list[str]:
    """Return how an index differs from this release's; `info` is its FT.INFO."""
    actual = {text_of(one[b"attribute"]): _actual_field(one) for one in info[b"attributes"]}
    declared = dict(map(_declared_field, memory_fields(settings.model, settings.hnsw)))
    differences = [f"{name} is missing" for name in declared if name not in actual]
    differences += [f"{name} is not in this release" for name in actual if name not in declared]
    differences += [
        f"{name} has {trait.lower()} {actual[name].get(trait, '-')} instead of {value}"
        for name in declared
        if name in actual
        for trait, value in declared[name].items()
        if actual[name].get(trait) != value
    ]
    prefixes = {text_of(prefix) for prefix in info[b"index_definition"][b"prefixes"]}
    if prefixes != {keys.memory_prefix, keys.chunk_prefix}:
        differences.append(f"it covers the prefixes {', '.join(sorted(prefixes))}")
    if b"NOOFFSETS" not in info[b"index_options"]:
        differences.append("it keeps the positions of words, which no search uses")
    return differences


def _declared_field(field: Any) -> tuple[str, Traits]:
    declared = [str(getattr(part, "value", part)) for part in field.redis_args()]
    head = declared.index("AS") + 2 if "AS" in declared[:2] else 1
    options, name = declared[head:], declared[head - 1]
    traits = {"TYPE": options[0], "FIELD": declared[0]} | _flags(options[1:])
    if "SEPARATOR" in options:
        traits["SEPARATOR"] = repr(options[options.index("SEPARATOR") + 1])
    if options[0] == "VECTOR":
        given = dict(zip(options[3::2], options[4::2], strict=True))
        traits |= {"ALGORITHM": options[1]} | {name: given[name] for name in _VECTOR_ATTRIBUTES if name in given}
    return name, traits


def _actual_field(attribute: dict[bytes, Any]) -> Traits:
    traits = {"TYPE": text_of(attribute[b"type"]), "FIELD": text_of(attribute[b"identifier"])}
    traits |= _flags([text_of(flag) for flag in attribute[b"flags"]])
    if b"SEPARATOR" in attribute:
        traits["SEPARATOR"] = repr(text_of(attribute[b"SEPARATOR"]))
    if b"algorithm" in attribute:
        traits["ALGORITHM"] = text_of(attribute[b"algorithm"])
        names = [(name, shown.encode()) for name, shown in _VECTOR_ATTRIBUTES.items()]
        traits |= {name: text_of(attribute[shown]) for name, shown in names if shown in attribute}
    return traits


def _flags(options: list[str]) -> Traits:
    return {flag: "yes" if flag in options else "no" for flag in _FIELD_FLAGS}


def text_of(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
