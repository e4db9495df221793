"""Compares the index of a namespace with the one that this release would make."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from memory_core.records.keys import Keys
from memory_core.records.model import read_models
from memory_core.settings.settings import VectorStoreSettings
from memory_core.store.connection import Client, store_errors
from memory_core.store.index import memory_fields

log = logging.getLogger(__name__)
_FLAGS = ("CASESENSITIVE", "NOSTEM", "SORTABLE")
_OF_VECTORS = {"DIM": "dim", "DISTANCE_METRIC": "distance_metric", "M": "M", "EF_CONSTRUCTION": "ef_construction"}
"""Attributes of a vector field as they are declared, and as FT.INFO names them; the others can be set per query."""

Traits = dict[str, str]


class LookOver:
    """Looks once at each namespace that a process uses, and logs what `reindex` would change."""

    def __init__(self, settings: VectorStoreSettings) -> None:
        self._settings = settings
        self._seen: set[str] = set()

    async def once(self, client: Client, keys: Keys) -> None:
        """Look, unless that was done before; in a thread, since making the definition takes a while.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        if keys.namespace in self._seen:
            return
        async with store_errors():
            models = await read_models(client, keys)
            if models is None:
                return
            info = await client.execute_command("FT.INFO", keys.index(models.current.version))
        self._seen.add(keys.namespace)
        wanted, command = self._settings, f"redis-memory reindex --namespace {keys.namespace}"
        if models.current.name != wanted.embedding_model:
            message = "namespace %s answers by %s, not by %s of the settings; to change that: %s --model %s"
            new = wanted.embedding_model
            log.warning(message, keys.namespace, models.current.name, new, command, new)
        told = await asyncio.to_thread(drift, info, keys, models.current.within(wanted))
        if told:
            message = "the index of namespace %s is not as this release makes it: %s; to make it anew: %s"
            log.warning(message, keys.namespace, "; ".join(told), command)


def drift(info: dict[bytes, Any], keys: Keys, settings: VectorStoreSettings) -> list[str]:
    """Say what differs in an index, of which `info` is FT.INFO's answer."""
    there = {_text(one[b"attribute"]): _found(one) for one in info[b"attributes"]}
    wanted = dict(map(_wanted, memory_fields(settings)))
    told = [f"{name} is missing" for name in wanted if name not in there]
    told += [f"{name} is not of this release" for name in there if name not in wanted]
    for name in (name for name in wanted if name in there):
        told += [
            f"{name} has {trait.lower()} {there[name].get(trait, '-')} instead of {value}"
            for trait, value in wanted[name].items()
            if there[name].get(trait) != value
        ]
    prefixes = {_text(prefix) for prefix in info[b"index_definition"][b"prefixes"]}
    if prefixes != {keys.memory_prefix, keys.chunk_prefix}:
        told.append(f"it covers the prefixes {', '.join(sorted(prefixes))}")
    return told


def _wanted(field: Any) -> tuple[str, Traits]:
    """Read a field as it would be declared."""
    declared = [str(getattr(part, "value", part)) for part in field.redis_args()]
    head = declared.index("AS") + 2 if "AS" in declared[:2] else 1
    options, name = declared[head:], declared[head - 1]
    traits = {"TYPE": options[0], "FIELD": declared[0]} | _flags(options[1:])
    if "SEPARATOR" in options:
        traits["SEPARATOR"] = repr(options[options.index("SEPARATOR") + 1])
    if options[0] == "VECTOR":
        given = dict(zip(options[3::2], options[4::2], strict=True))
        traits |= {"ALGORITHM": options[1]} | {name: given[name] for name in _OF_VECTORS if name in given}
    return name, traits


def _found(attribute: dict[bytes, Any]) -> Traits:
    """Read a field as FT.INFO describes it."""
    traits = {"TYPE": _text(attribute[b"type"]), "FIELD": _text(attribute[b"identifier"])}
    traits |= _flags([_text(flag) for flag in attribute[b"flags"]])
    if b"SEPARATOR" in attribute:
        traits["SEPARATOR"] = repr(_text(attribute[b"SEPARATOR"]))
    if b"algorithm" in attribute:
        traits["ALGORITHM"] = _text(attribute[b"algorithm"])
        traits |= {
            name: _text(attribute[told.encode()]) for name, told in _OF_VECTORS.items() if told.encode() in attribute
        }
    return traits


def _flags(options: list[str]) -> Traits:
    return {flag: "yes" if flag in options else "no" for flag in _FLAGS}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
