"""What every inference engine must offer, and the arithmetic around it that no engine should repeat."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from memory_core.vectors import Matrix, normalise

TokenIds = NDArray[np.int64]
"""Token ids: one text as shape (length,), or a padded batch as shape (n, longest)."""

TextKind = Literal["query", "passage"]
"""What a text is: some models want a different prefix before each."""
Pooling = Literal["mean", "cls", "max"]
"""How token vectors become one."""

MIN_BUDGET = 256
MAX_BUDGET = 16_384

TILE = 8
"""Padded lengths are multiples of it: engines prepare and keep kernels for each shape, and tensor cores want it so."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokenised texts: one row of ids a text, each at least one token long, not padded."""

    rows: tuple[TokenIds, ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [len(row) for row in self.rows]

    def pick(self, positions: Sequence[int]) -> Tokens:
        """The rows at `positions`, in that order."""
        return Tokens(tuple(self.rows[position] for position in positions))

    def padded(self, pad_id: int, most: int) -> tuple[TokenIds, TokenIds]:
        """Ids and attention mask, both of shape (n, longest up to a multiple of TILE, but at most `most`)."""
        longest = max(self.lengths, default=0)
        shape = (len(self.rows), max(longest, min(-(-longest // TILE) * TILE, most)))
        ids = np.full(shape, pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for position, row in enumerate(self.rows):
            ids[position, : len(row)] = row
            mask[position, : len(row)] = 1
        return ids, mask


class Encoder(Protocol):
    """Turns texts into unit vectors. Both methods block, are thread-safe and are called in worker threads."""

    @property
    def name(self) -> str:
        """The model's name, as namespaces and jobs spell it."""
        ...

    @property
    def dimension(self) -> int:
        """Length of one vector."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that count; the rest is cut off."""
        ...

    @property
    def backend(self) -> str:
        """The engine: onnx, openvino, torch or fake."""
        ...

    @property
    def device(self) -> str:
        """Where it computes, such as `cpu` or `cuda:0`."""
        ...

    @property
    def provider(self) -> str:
        """The engine's own name for what computes."""
        ...

    @property
    def fallback(self) -> str:
        """Why another device than the wanted one is used; empty if it is the wanted one."""
        ...

    def tokenise(self, texts: list[str], kind: TextKind = "passage") -> Tokens:
        """Tokenise behind the model's prefix for `kind`, cutting each text at `max_tokens`."""
        ...

    def infer(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        """Compute unit rows, shape (n, dimension), float32; if `sparing`, an engine that can leaves a core to others.

        Raises:
            InvalidArgument: the model gave a NaN, an infinity or a zero vector.
        """
        ...


def plan_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group texts of like length so that little is padding.

    Returns positions into `lengths`, each exactly once, shortest texts first. A batch's padded size (texts ×
    longest) stays within `budget` tokens unless it is one text that is longer by itself.
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[position] * (len(batch) + 1) > budget:
            batches.append(batch)
            batch = []
        batch.append(position)
    if batch:
        batches.append(batch)
    return batches


def mean_pool(hidden: NDArray[np.float32], mask: TokenIds) -> Matrix:
    """Average token vectors, shape (n, tokens, dimension), over the tokens that `mask` says are real."""
    weights = mask.astype(np.float32)
    sums = np.matmul(weights[:, None, :], hidden)[:, 0, :]
    return sums / np.maximum(weights.sum(axis=1, keepdims=True), 1.0)


def pool(hidden: NDArray[np.float32], mask: TokenIds, pooling: Pooling) -> Matrix:
    """Make one vector of each text's token vectors; `hidden` is (n, tokens, dimension)."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return np.where(mask[:, :, None] == 1, hidden, np.float32(-np.inf)).max(axis=1)
    return mean_pool(hidden, mask)


def unit_rows(vectors: Matrix, dimension: int) -> Matrix:
    """Validate and normalise what a model gave, shape (n, dimension).

    Raises:
        InvalidArgument: see `memory_core.vectors.normalise`.
    """
    return normalise(vectors, dimension)


class PooledEncoder(ABC):
    """What the engines share: rows pooled by the engine become unit rows here."""

    dimension: int

    def infer(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        """Compute unit rows, shape (n, dimension); see `Encoder`.

        Raises:
            InvalidArgument: the model gave a NaN, an infinity or a zero vector.
        """
        if not tokens.rows:
            return np.empty((0, self.dimension), dtype=np.float32)
        return unit_rows(self._pooled(tokens, spare_core=spare_core), self.dimension)

    @abstractmethod
    def _pooled(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        """Compute one row a text, of any length, shape (n, dimension)."""


def encode(encoder: Encoder, texts: list[str], budget: int = 1024, kind: TextKind = "passage") -> Matrix:
    """Embed texts in length-sorted batches; rows, shape (n, dimension), come in the order of `texts`."""
    vectors = np.empty((len(texts), encoder.dimension), dtype=np.float32)
    tokens = encoder.tokenise(texts, kind)
    for positions in plan_batches(tokens.lengths, budget):
        vectors[positions] = encoder.infer(tokens.pick(positions))
    return vectors
