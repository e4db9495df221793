"""Builds every FT.SEARCH text. User text is always a PARAM; only the principal sets the permission clause."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from memory_core.records.memory import HEAD, SEALED_CODEC, Priority, Visibility
from memory_core.records.model import FAILED, NO_VECTOR, Model
from memory_core.records.scope import NOBODY, Principal
from memory_core.records.times import to_redis
from memory_server.index.filters import ResolvedFilters

TEXT_FIELDS = "content|terms|source_text"

Value = str | int | float | bytes


@dataclass(slots=True)
class Query:
    """A query text with its PARAMS."""

    text: str = ""
    params: dict[str, Value] = field(default_factory=dict[str, Value])

    def bind(self, value: Value) -> str:
        """Add a parameter and return its reference."""
        name = f"p{len(self.params)}"
        self.params[name] = value.replace("\\", "\\\\") if isinstance(value, str) else value
        return f"${name}"

    def bind_any(self, values: Iterable[Value]) -> str:
        return "|".join(self.bind(value) for value in values)

    def arguments(self) -> list[Value]:
        """Return the options that every FT.SEARCH needs."""
        flat = [part for pair in self.params.items() for part in pair]
        return [*(["PARAMS", len(flat), *flat] if flat else []), "DIALECT", 2]


def readable(principal: Principal, filters: ResolvedFilters, now: float) -> Query:
    """Select what the principal may read, that has not expired, within `filters`."""
    return _permitted(principal, filters, lambda query: _unexpired(query, now))


def shared(principal: Principal, tokens: Sequence[str], filters: ResolvedFilters, now: float) -> Query:
    """Select what some tokens of grants show to the principal that is neither its own nor public."""
    query = Query()
    clauses = [_tagged(query, "scope", tokens or (NOBODY,)), _unexpired(query, now), *_filter_clauses(query, filters)]
    clauses += _without_mistrusted(query, principal)
    clauses.append(f"-@visibility:{{{query.bind(Visibility.PUBLIC)}}}")
    clauses.append(f"-@owner:{{{query.bind_any(principal.owners or (NOBODY,))}}}")
    query.text = " ".join(clauses)
    return query


def expired(principal: Principal, filters: ResolvedFilters, now: float) -> Query:
    """Select what the principal could read until it expired, within `filters`."""
    return _permitted(principal, filters, lambda query: _expired(query, now))


def everything() -> Query:
    """Select every chunk of all owners; for the doctor only."""
    return Query("*")


def all_memories() -> Query:
    """Select every memory of all owners, each long one once; for operators only."""
    return memories(Query())


def unfinished(model: Model) -> Query:
    """Select every chunk of all owners that waits for its vector; for the sweeper only."""
    return without_vector(Query(), model)


def not_embedded(model: Model, before: float) -> Query:
    """Select all chunks without a vector of a model that were last changed before a time; to change the model only."""
    changed = _with(Query(), lambda query: f"@updated_at:[-inf ({query.bind(to_redis(before))}]")
    return _with(changed, lambda query: f"-@model:{{{query.bind(model.label)}}}")


def other_format(source: Model, target: Model) -> Query:
    """Select all chunks that have a vector in one format and not in the other; to change the format only."""
    return _with(with_vector(Query(), source), lambda query: f"-@model:{{{query.bind(target.label)}}}")


def living(now: float) -> Query:
    """Select all unexpired chunks of all owners; for administrators, and only to count them."""
    return _with(Query(), lambda query: f"@expires_at:[({query.bind(to_redis(now))} inf]")


def concerned_with(model: Model) -> Query:
    """Select every chunk that has a vector of a model, waits for one or failed; to change the model only."""
    return having(Query(), "model", model.label, NO_VECTOR + model.label, FAILED + model.label)


def written_by(agent: str, since: float) -> Query:
    """Select all memories of all owners that an agent wrote since a time; for administrators only."""
    written = having(Query(), "writer", agent)
    return memories(_with(written, lambda query: f"@updated_at:[{query.bind(to_redis(since))} inf]"))


def kept_by(owners: Sequence[str], now: float) -> Query:
    """Select all chunks of some owner ids that have not expired, to count them."""
    return _with(owned(Query(), owners), lambda query: _unexpired(query, now))


def of_owner(owner: str) -> Query:
    """Select everything of an owner id, for any caller; for the sweeper only."""
    return having(Query(), "owner", owner)


def near_tasks(vector: bytes, k: int) -> Query:
    """Take the k open tasks nearest to a vector; permission is checked on the tasks."""
    return with_neighbours(everything(), vector, k)


def with_neighbours(query: Query, vector: bytes, k: int, policy: str = "") -> Query:
    """Take the k nearest to a vector within a selection, found in the way that `search/knn_policy.py` names."""
    nearest = Query(params=dict(query.params))
    nearest.text = f"({query.text})=>[KNN {nearest.bind(k)} @vec {nearest.bind(vector)} {policy} AS distance]"
    return nearest


def with_word(query: Query, word: str) -> Query:
    """Narrow a selection to what holds a word or another form of it; only the word counts for the score."""
    return _with(query, lambda narrowed: f"@{TEXT_FIELDS}:({narrowed.bind(word)})")


def with_source(query: Query, word: str) -> Query:
    return _with(query, lambda narrowed: f"@source_text:({narrowed.bind(word)})")


def at_turns(query: Query, turns: Mapping[tuple[str, str], Sequence[int]]) -> Query:
    """Narrow a selection to sequence numbers within contexts, given by owner and context."""

    def clause(narrowed: Query) -> str:
        places: list[str] = []
        for (owner, context), numbers in turns.items():
            runs = "|".join(f"@seq:[{narrowed.bind(low)} {narrowed.bind(high)}]" for low, high in _runs(numbers))
            places.append(
                f"({_tagged(narrowed, 'context', (context,))} {_tagged(narrowed, 'owner', (owner,))} ({runs}))"
            )
        return f"({'|'.join(places)})"

    return _with(memories(query), clause)


def having(query: Query, field: str, *values: str) -> Query:
    """Narrow a selection to what has one of the values in a TAG field."""
    return _with(query, lambda narrowed: _tagged(narrowed, field, values))


def memories(query: Query) -> Query:
    """Narrow a selection of chunks to memories: each long one counts once."""
    return having(query, "part", HEAD)


def without_vector(query: Query, model: Model) -> Query:
    """Narrow a selection to what still waits for its vector of a model."""
    return having(query, "model", NO_VECTOR + model.label)


def failed(query: Query, model: Model) -> Query:
    """Narrow a selection to what a model failed to embed."""
    return having(query, "model", FAILED + model.label)


def with_vector(query: Query, model: Model) -> Query:
    return having(query, "model", model.label)


def sensitive(query: Query) -> Query:
    return having(query, "codec", SEALED_CODEC)


def without_sensitive(query: Query) -> Query:
    return _with(query, lambda narrowed: f"-@codec:{{{narrowed.bind(SEALED_CODEC)}}}")


def owned(query: Query, owners: Sequence[str]) -> Query:
    return having(query, "owner", *(owners or (NOBODY,)))


def created_since(query: Query, created_at: float) -> Query:
    return _with(query, lambda narrowed: f"@created_at:[{narrowed.bind(to_redis(created_at))} inf]")


def expiring(query: Query, before: float) -> Query:
    return _with(query, lambda narrowed: _expired(narrowed, before))


def created_before(query: Query, created_at: float | None) -> Query:
    """Narrow a selection to what is older than a cursor's position."""
    if created_at is None:
        return query
    return _with(query, lambda narrowed: f"@created_at:[-inf ({narrowed.bind(to_redis(created_at))}]")


def updated_between(query: Query, after: float, until: float) -> Query:
    """Narrow a selection to what was last changed after one time and no later than another."""
    low, high = to_redis(after), to_redis(until)
    return _with(query, lambda narrowed: f"@updated_at:[({narrowed.bind(low)} {narrowed.bind(high)}]")


def _with(query: Query, clause: Callable[[Query], str]) -> Query:
    narrowed = Query(params=dict(query.params))
    narrowed.text = f"{query.text} {clause(narrowed)}".lstrip()
    return narrowed


def _unexpired(query: Query, now: float) -> str:
    """Exclude the expired ones: they are few, so the engine needs half the time of selecting the unexpired ones."""
    return f"-{_expired(query, now)}"


def _expired(query: Query, now: float) -> str:
    return f"@expires_at:[-inf {query.bind(to_redis(now))}]"


def _permitted(principal: Principal, filters: ResolvedFilters, expiry: Callable[[Query], str]) -> Query:
    query = Query()
    hidden = [f"-@scope:{{{query.bind_any(sorted(principal.hidden))}}}"] if principal.hidden else []
    scope = _tagged(query, "scope", principal.tokens)
    hidden += _without_mistrusted(query, principal)
    query.text = " ".join([scope, *hidden, expiry(query), *_filter_clauses(query, filters)])
    return query


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _without_mistrusted(query: Query, principal: Principal) -> list[str]:
    """Exclude what quarantined agents wrote since then."""
    return [
        f"-(@writer:{{{query.bind(name)}}} -@updated_at:[-inf ({query.bind(to_redis(since))}])"
        for name, since in principal.mistrusted.items()
    ]


def _tagged(query: Query, field: str, values: Iterable[str]) -> str:
    """Match any of the values; without weight, since rare tags would outscore words."""
    return f"@{field}:{{{query.bind_any(values)}}}=>{{$weight: 0}}"


def _filter_clauses(query: Query, filters: ResolvedFilters) -> list[str]:
    clauses = [_tagged(query, name, values) for name, values in filters.chosen]
    if filters.since is not None or filters.until is not None:
        low = query.bind(to_redis(filters.since)) if filters.since is not None else "-inf"
        high = query.bind(to_redis(filters.until)) if filters.until is not None else "inf"
        clauses.append(f"@occurred_at:[{low} {high}]")
    if not filters.include_archive and Priority.ARCHIVE not in filters.priorities:
        clauses.append(f"-@priority:{{{query.bind(Priority.ARCHIVE)}}}")
    return clauses
