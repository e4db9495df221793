"""The interface of all inference engines, and the arithmetic that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from memory_core.records.vectors import Matrix, normalise

TokenIds = NDArray[np.int64]
"""Token ids: one text as shape (length,), or a padded batch as shape (n, longest)."""

TextKind = Literal["query", "passage"]
"""Whether a text is a query or a passage: some models need a different prefix for each."""
Pooling = Literal["mean", "cls", "max"]
"""How the vectors of the tokens become one vector."""

MIN_BUDGET = 256
MAX_BUDGET = 16_384

TILE = 8
"""Padded lengths are multiples of this: engines compile kernels per shape, and tensor cores need multiples."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokenised texts: one row of ids per text, at least one token long, not padded."""

    rows: tuple[TokenIds, ...]

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each text."""
        return [len(row) for row in self.rows]

    def pick(self, positions: Sequence[int]) -> Tokens:
        """The rows at `positions`, in that order."""
        return Tokens(tuple(self.rows[position] for position in positions))

    def padded(self, pad_id: int, limit: int) -> tuple[TokenIds, TokenIds]:
        """Ids and attention mask, both of shape (n, longest rounded up to a multiple of TILE, at most `limit`)."""
        longest = max(self.lengths, default=0)
        shape = (len(self.rows), max(longest, min(-(-longest // TILE) * TILE, limit)))
        ids = np.full(shape, pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for position, row in enumerate(self.rows):
            ids[position, : len(row)] = row
            mask[position, : len(row)] = 1
        return ids, mask


class Encoder(Protocol):
    """Turns texts into unit vectors. Both methods block and are thread-safe; they run in worker threads."""

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
        """Number of tokens that are used of a text. The rest is cut off."""
        ...

    @property
    def backend(self) -> str:
        """The engine: onnx, openvino, torch or fake."""
        ...

    @property
    def device(self) -> str:
        """The device it uses, such as `cpu` or `cuda:0`."""
        ...

    @property
    def provider(self) -> str:
        """The engine's own name for the device and precision it uses."""
        ...

    @property
    def fallback(self) -> str:
        """Why it does not use the requested device. Empty if it does."""
        ...

    def tokenise(self, texts: list[str], kind: TextKind = "passage") -> Tokens:
        """Add the model's prefix for `kind`, tokenise, and cut each text at `max_tokens`."""
        ...

    def infer(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        """Compute unit rows, shape (n, dimension), float32. With `spare_core`, some engines leave one core free.

        Raises:
            InvalidArgument: the model returned a NaN, an infinity or a zero vector.
        """
        ...


def plan_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group texts of similar length, to keep padding small.

    Returns positions into `lengths`, each exactly once, shortest texts first. The padded size of a batch (texts ×
    longest) is at most `budget` tokens, unless it is one longer text.
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
    """Average token vectors, shape (n, tokens, dimension), over the tokens in `mask`."""
    weights = mask.astype(np.float32)
    sums = np.matmul(weights[:, None, :], hidden)[:, 0, :]
    return sums / np.maximum(weights.sum(axis=1, keepdims=True), 1.0)


def pool(hidden: NDArray[np.float32], mask: TokenIds, pooling: Pooling) -> Matrix:
    """Reduce the token vectors of each text to one vector. `hidden` has shape (n, tokens, dimension)."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return np.where(mask[:, :, None] == 1, hidden, np.float32(-np.inf)).max(axis=1)
    return mean_pool(hidden, mask)


class PooledEncoder(ABC):
    """Base of the engines: turns their pooled rows into unit rows."""

    dimension: int

    def infer(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        """Compute unit rows, shape (n, dimension); see `Encoder`.

        Raises:
            InvalidArgument: the model returned a NaN, an infinity or a zero vector.
        """
        if not tokens.rows:
            return np.empty((0, self.dimension), dtype=np.float32)
        return normalise(self._pooled(tokens, spare_core=spare_core), self.dimension)

    @abstractmethod
    def _pooled(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        """Compute one row per text, not normalised, shape (n, dimension)."""


def encode(encoder: Encoder, texts: list[str], budget: int = 1024, kind: TextKind = "passage") -> Matrix:
    """Embed texts in batches of similar length. Rows, shape (n, dimension), are in the order of `texts`."""
    vectors = np.empty((len(texts), encoder.dimension), dtype=np.float32)
    tokens = encoder.tokenise(texts, kind)
    for positions in plan_batches(tokens.lengths, budget):
        vectors[positions] = encoder.infer(tokens.pick(positions))
    return vectors
