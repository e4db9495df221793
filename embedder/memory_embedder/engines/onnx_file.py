"""Base of the engines that run an ONNX file and its tokenizer.json."""

from __future__ import annotations

from typing import Any

import numpy as np

from memory_core.records.vectors import Matrix
from memory_embedder.engines.encoder import PooledEncoder, TextKind, TokenIds, Tokens, pool
from memory_embedder.engines.tokeniser import TextTokeniser
from memory_embedder.engines.weights import Weights


class OnnxFileEncoder(PooledEncoder):
    """Tokenises texts and pools the output of the model. Subclasses set `_inputs`."""

    def __init__(self, weights: Weights) -> None:
        """Load the tokenizer.

        Raises:
            InvalidArgument: the file is not a tokenizer.
        """
        self.name = weights.name
        self.max_tokens = weights.max_tokens
        self._weights = weights
        self._tokeniser = TextTokeniser(weights)
        self._inputs: set[str] = set()

    def tokenise(self, texts: list[str], kind: TextKind = "passage") -> Tokens:
        """Tokenise, and cut each text at `max_tokens`. Lone surrogates count as `?`."""
        return self._tokeniser.tokenise(texts, kind)

    def _feed(self, tokens: Tokens) -> tuple[dict[str, TokenIds], TokenIds]:
        """The inputs of the model, and the attention mask."""
        ids, mask = tokens.padded(self._tokeniser.pad_id, self.max_tokens)
        feed = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(ids)
        return feed, mask

    def _pool(self, hidden: Any, mask: TokenIds) -> Matrix:
        """Pool the output, unless the model has done that."""
        return hidden if hidden.ndim == 2 else pool(hidden, mask, self._weights.pooling)
