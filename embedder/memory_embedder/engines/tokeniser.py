"""Tokenises texts with a model's tokenizer.json."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from memory_core.errors import InvalidArgument
from memory_embedder.engines.encoder import TextKind, Tokens
from memory_embedder.engines.sentence_model import Prompts
from memory_embedder.engines.weights import Weights

_CHARACTERS_PER_TOKEN = 128
"""WordPiece turns words of more than 100 characters into one unknown token, so more characters do not matter."""


class TextTokeniser:
    """A model's tokenizer with its maximum length and prefixes. Thread-safe."""

    def __init__(self, weights: Weights) -> None:
        """Load the file.

        Raises:
            InvalidArgument: the file is not a tokenizer.
        """
        self._max_tokens = weights.max_tokens
        self._prompts = weights.prompts
        try:
            self._tokenizer = Tokenizer.from_file(str(weights.tokenizer))
        except Exception as error:  # tokenizers raises nothing more specific
            raise InvalidArgument(f"{weights.tokenizer} is not a tokenizer: {error}") from error
        self._tokenizer.no_padding()  # many files pad all texts to a fixed length, which multiplies the work
        self._tokenizer.enable_truncation(weights.max_tokens)
        ids = (self._tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
        self.pad_id = next((token_id for token_id in ids if token_id is not None), 0)

    def tokenise(self, texts: list[str], kind: TextKind) -> Tokens:
        """Add the prefix for `kind`, tokenise, and cut each text at the maximum length."""
        encodings = self._tokenizer.encode_batch_fast(prepare(texts, self._prompts, kind, self._max_tokens))
        return Tokens(tuple(np.array(encoding.ids, dtype=np.int64) for encoding in encodings))


def prepare(texts: list[str], prompts: Prompts, kind: TextKind, max_tokens: int) -> list[str]:
    """Add the prefix and cut texts to a safe length. Lone surrogates, which tokenizers refuse, become `?`."""
    prefix = prompts.query if kind == "query" else prompts.passage
    longest = max_tokens * _CHARACTERS_PER_TOKEN
    return [prefix + text[:longest].encode(errors="replace").decode() for text in texts]
