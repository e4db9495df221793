"""An encoder without a model, for fast tests of the pipeline."""

from __future__ import annotations

import hashlib
import time

import numpy as np

from memory_core.records.vectors import Matrix, normalise
from memory_embedder.engines.encoder import TextKind, Tokens


class FakeEncoder:
    """Gives each text a vector seeded by a hash of its tokens, so equal texts have equal vectors.

    `seconds_per_token` slows it down. `infer` raises for a text that contains the word `poison`.
    """

    backend = "fake"
    device = "cpu"
    provider = "fake"
    fallback = ""

    def __init__(
        self,
        name: str = "fake",
        dimension: int = 16,
        *,
        max_tokens: int = 256,
        seconds_per_token: float = 0.0,
        poison: str = "",
    ) -> None:
        self.name = name
        self.dimension = dimension
        self.max_tokens = max_tokens
        self.batches: list[int] = []
        self.spare_core: list[bool] = []
        self._seconds_per_token = seconds_per_token
        self._poison = _word_id(poison) if poison else None

    def tokenise(self, texts: list[str], kind: TextKind = "passage") -> Tokens:
        """One token per word, between a start and an end token. Ignores `kind`."""
        return Tokens(tuple(self._row(text) for text in texts))

    def infer(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        """Vectors of shape (n, dimension).

        Raises:
            RuntimeError: a text contains the poison.
        """
        self.batches.append(len(tokens.rows))
        self.spare_core.append(spare_core)
        time.sleep(self._seconds_per_token * len(tokens.rows) * max(tokens.lengths, default=0))
        if self._poison is not None and any(self._poison in row for row in tokens.rows):
            raise RuntimeError("poison")
        rows = [_vector(row.tobytes(), self.dimension) for row in tokens.rows]
        return normalise(np.array(rows, dtype=np.float32).reshape(-1, self.dimension), self.dimension)

    def _row(self, text: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        words = [_word_id(word) for word in text.split()][: self.max_tokens - 2]
        return np.array([1, *words, 2], dtype=np.int64)


def _word_id(word: str) -> int:
    return 3 + int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")


def _vector(seed: bytes, dimension: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    number = int.from_bytes(hashlib.sha256(seed).digest()[:8], "little")
    return np.random.default_rng(number).standard_normal(dimension)
