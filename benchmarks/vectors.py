"""Vectors of real texts, in any number: those of the conversations, then mixtures of two of them."""

from __future__ import annotations

import numpy as np

from benchmarks.evalset import load
from memory_core.records.vectors import Matrix
from memory_embedder.engines.backends import load_encoder
from memory_embedder.engines.encoder import encode
from memory_embedder.engines.encoder_options import EncoderOptions

MODEL = "all-MiniLM-L6-v2"
_SETS = ("locomo", "realtalk", "cranfield")
_MIXED = (0.3, 0.7)
"""Weight of one of the two texts in a mixture, chosen like a text that contains both."""


def questions_and_texts(count: int, seed: int = 7) -> tuple[Matrix, Matrix]:
    """The vectors of all questions, and `count` vectors of memories; rows of unit length, (n, dimension)."""
    conversations = [one for name in _SETS for one in load(name)]
    encoder = load_encoder("auto", EncoderOptions(MODEL))
    asked = encode(encoder, [question.text for one in conversations for question in one.questions])
    texts = encode(encoder, [memory["text"] for one in conversations for memory in one.memories])
    return asked, grown(texts, count, seed)


def grown(texts: Matrix, count: int, seed: int) -> Matrix:
    """Add mixtures of two rows until there are `count`."""
    chance = np.random.default_rng(seed)
    missing = max(count - len(texts), 0)
    first, second = chance.integers(0, len(texts), (2, missing))
    share = chance.uniform(*_MIXED, (missing, 1)).astype(np.float32)
    mixed = share * texts[first] + (1 - share) * texts[second]
    rows = np.concatenate([texts[:count], mixed])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
