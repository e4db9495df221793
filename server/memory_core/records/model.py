"""Knows which embedding model a namespace answers with, and which other one it keeps vectors of, as its `meta` says.

Every vector lies in a field named by its model and every index covers the field of one model, so whoever asks the
index of the model that embedded the question never compares vectors of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from memory_core.records.keys import Keys, vector_field
from memory_core.records.names import SEPARATOR

if TYPE_CHECKING:
    from memory_core.settings.settings import VectorStoreSettings
    from memory_core.store.connection import Client

NO_VECTOR = "none:"
"""Before the name of a model in the field `model`: the piece still waits for its vector."""


class Phase(StrEnum):
    """How far a change of model is: the other model is about to answer, did so before, or is being forgotten."""

    BUILDING = "building"
    SWITCHED = "switched"
    DROPPING = "dropping"


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a namespace, and the version of the index over its vectors."""

    name: str
    dimension: int
    version: int = 1

    @classmethod
    def configured(cls, settings: VectorStoreSettings) -> Model:
        """Give what a new namespace gets."""
        return cls(settings.embedding_model, settings.vector_dimension)

    @property
    def field(self) -> str:
        """Hash field of its vectors."""
        return vector_field(self.name)

    @property
    def sealed_field(self) -> str:
        """Hash field of those of sensitive memories, which no index sees."""
        return f"sealed_{self.field}"

    def within(self, settings: VectorStoreSettings) -> VectorStoreSettings:
        """Give settings that name this model."""
        return settings.model_copy(update={"embedding_model": self.name, "vector_dimension": self.dimension})

    def is_ready(self, state: str | bytes | None) -> bool:
        """Whether a piece has its vector, by its field `model`."""
        said = state.decode(errors="replace") if isinstance(state, bytes) else state or ""
        return self.name in said.split(SEPARATOR)

    def __str__(self) -> str:
        return f"{self.name} ({self.dimension} dimensions)"


@dataclass(frozen=True, slots=True)
class Models:
    """The model that answers, and the other one while a change is under way or can be taken back."""

    current: Model
    other: Model | None = None
    phase: Phase | None = None
    switched_at: float = 0.0

    def serves(self, name: str, dimension: int) -> bool:
        """Whether vectors of a model are wanted."""
        kept = [self.current, *([self.other] if self.other else [])]
        return (name, dimension) in {(one.name, one.dimension) for one in kept}


FIELDS = (
    "model", "dimension", "version", "other_model", "other_dimension", "other_version", "phase", "switched_at",
)  # fmt: skip


async def read_models(client: Client, names: Keys) -> Models | None:
    """Read what a namespace says of its models; None where it has none yet."""
    return parse(await client.hmget(names.meta, FIELDS))


async def count_jobs(client: Client, namespaces: Sequence[Keys]) -> list[int]:
    """Count the texts that wait in each namespace to be embedded, by the model that answers or by the other one."""
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
    """Make sense of the HMGET of FIELDS."""
    row = {name: value.decode() for name, value in zip(FIELDS, values, strict=True) if value is not None}
    if "model" not in row or "dimension" not in row:
        return None
    other = None
    if "other_model" in row:
        other = Model(row["other_model"], int(row["other_dimension"]), int(row["other_version"]))
    return Models(
        Model(row["model"], int(row["dimension"]), int(row.get("version", 1))),
        other,
        Phase(row["phase"]) if other else None,
        float(row.get("switched_at", 0)),
    )
