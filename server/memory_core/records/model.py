"""The embedding models of a namespace, from its `meta` record.

Each model has its own vector field and its own index, so a search never compares vectors of two models. So has each
format of a model's vectors: half precision (float16), or float32 in namespaces of older releases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from memory_core.records.keys import Keys, model_key, vector_field
from memory_core.records.names import split_labels
from memory_core.redis_client import Client

NO_VECTOR = "none:"  # prefix in the field `model`: the chunk waits for its vector of the model that follows
FAILED = "failed:"  # prefix in the field `model`: the model that follows failed too often to embed the chunk


class Phase(StrEnum):
    """Progress of a change of model: the other model will be current, was current, or is being removed."""

    BUILDING = "building"
    SWITCHED = "switched"
    DROPPING = "dropping"


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a namespace, the version of the index over its vectors, and their format: `half` or float32."""

    name: str
    dimension: int
    version: int = 1
    half: bool = True

    @property
    def field(self) -> str:
        return vector_field(self.name, half=self.half)

    @property
    def key(self) -> str:
        """The name of the model in keys, whatever the format."""
        return model_key(self.name)

    @property
    def sealed_field(self) -> str:
        """The hash field of the vectors of sensitive memories, which is not indexed. It holds either format."""
        return f"sealed_{self.key}"

    @property
    def label(self) -> str:
        """The value of the indexed field `model` of chunks that have its vector."""
        return self.field if self.half else self.name

    @property
    def vector_bytes(self) -> int:
        """The length of one stored vector."""
        return self.dimension * (2 if self.half else 4)

    @property
    def precision(self) -> str:
        """The data type of its index."""
        return "float16" if self.half else "float32"

    def is_ready(self, state: str | bytes | None) -> bool:
        """Whether a chunk has its vector, by the value of its field `model`."""
        text = state.decode(errors="replace") if isinstance(state, bytes) else state
        return self.label in split_labels(text)

    def has_failed(self, state: str | bytes | None) -> bool:
        """Whether it failed to embed a chunk, by the value of its field `model`."""
        text = state.decode(errors="replace") if isinstance(state, bytes) else state
        return FAILED + self.label in split_labels(text)

    def __str__(self) -> str:
        return f"{self.name} ({self.dimension} dimensions)"


@dataclass(frozen=True, slots=True)
class Models:
    """The current model, and the other one while a change is in progress or can be reverted."""

    current: Model
    other: Model | None = None
    phase: Phase | None = None
    switched_at: float = 0.0

    @property
    def goes_back(self) -> bool:
        """Whether the change returns to the model before it, or has. The later model's index has the higher version."""
        if self.other is None:
            return False
        is_older = self.other.version < self.current.version
        return is_older if self.phase is Phase.BUILDING else not is_older

    def serves(self, name: str, dimension: int) -> bool:
        kept = [self.current, *([self.other] if self.other else [])]
        return (name, dimension) in {(one.name, one.dimension) for one in kept}


FIELDS = (
    "model", "dimension", "version", "field", "other_model", "other_dimension", "other_version", "other_field",
    "phase", "switched_at",
)  # fmt: skip


async def read_models(client: Client, names: Keys) -> Models | None:
    """Read the models of a namespace; None if it has none yet."""
    return parse(await client.hmget(names.meta, FIELDS))


async def count_jobs(client: Client, namespaces: Sequence[Keys]) -> list[int]:
    """Count the texts that wait in each namespace to be embedded, for all its models."""
    pipe = client.pipeline(transaction=False)
    for names in namespaces:
        pipe.hmget(names.meta, "model", "other_model")
    rows = await pipe.execute() if namespaces else []
    owners = list[int]()
    for number, (names, row) in enumerate(zip(namespaces, rows, strict=True)):
        for model in {value.decode() for value in row if value}:
            pipe.xlen(names.jobs(model))
            owners.append(number)
    counts = [0] * len(rows)
    for number, length in zip(owners, await pipe.execute() if owners else [], strict=True):
        counts[number] += length
    return counts


def parse(values: Sequence[bytes | None]) -> Models | None:
    """Parse the HMGET of FIELDS."""
    row = {name: value.decode() for name, value in zip(FIELDS, values, strict=True) if value is not None}
    if "model" not in row or "dimension" not in row:
        return None
    other = None
    if "other_model" in row:
        other = _model(row, "other_")
    return Models(
        _model(row, ""),
        other,
        Phase(row["phase"]) if other else None,
        float(row.get("switched_at", 0)),
    )


def _model(row: Mapping[str, str], prefix: str) -> Model:
    name = row[f"{prefix}model"]
    half = row.get(f"{prefix}field") != vector_field(name, half=False)
    return Model(name, int(row[f"{prefix}dimension"]), int(row.get(f"{prefix}version", 1)), half)
