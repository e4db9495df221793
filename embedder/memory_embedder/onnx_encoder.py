"""Embeds with ONNX Runtime: the engine that runs everywhere, from a laptop's CPU to a GPU node."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from memory_core.errors import InvalidArgument
from memory_core.settings import GpuSettings
from memory_core.vectors import Matrix
from memory_embedder.encoder import TokenIds, Tokens, mean_pool, unit_rows
from memory_embedder.providers import CPU, Choice, choose, fall_back
from memory_embedder.weights import Weights

_CHARACTERS_PER_TOKEN = 128
"""WordPiece makes words of more than 100 characters one unknown token, so no more can matter."""
_POOLED_OUTPUT = "sentence_embedding"
_LOG_ERRORS = 3


class OnnxEncoder:
    """One ONNX model and its tokenizer; see `Encoder`."""

    backend = "onnx"

    def __init__(self, weights: Weights, gpu: GpuSettings, *, threads: int | None = None) -> None:
        """Load the model.

        `threads` bounds the cores of one inference; by default those this process may run on.

        Raises:
            InvalidArgument: the files are not a usable model.
            NotSupported: the wanted device is not available.
        """
        self.name = weights.name
        self.max_tokens = weights.max_tokens
        self._pooling = weights.pooling
        self._tokenizer = _load_tokenizer(weights)
        self._pad_id = _pad_id(self._tokenizer)
        self._session, choice = _open_session(weights, gpu, threads or available_cores())
        self.provider, self.device, self.fallback = choice.provider, choice.device, choice.fallback
        self._inputs = {node.name for node in self._session.get_inputs()}
        outputs = [node.name for node in self._session.get_outputs()]
        self._output = _POOLED_OUTPUT if _POOLED_OUTPUT in outputs else outputs[0]
        self.dimension = int(self._pooled(self.tokenise(["dimension"])).shape[-1])

    def tokenise(self, texts: list[str]) -> Tokens:
        """Tokenise, cutting each text at `max_tokens`; lone surrogates count as `?`."""
        longest = self.max_tokens * _CHARACTERS_PER_TOKEN
        clean = [text[:longest].encode(errors="replace").decode() for text in texts]
        encodings = self._tokenizer.encode_batch_fast(clean)
        return Tokens(tuple(np.array(encoding.ids, dtype=np.int64) for encoding in encodings))

    def infer(self, tokens: Tokens) -> Matrix:
        """Compute unit rows, shape (n, dimension).

        Raises:
            InvalidArgument: the model gave a NaN, an infinity or a zero vector.
        """
        if not tokens.rows:
            return np.empty((0, self.dimension), dtype=np.float32)
        return unit_rows(self._pooled(tokens), self.dimension)

    def _pooled(self, tokens: Tokens) -> Matrix:
        ids, mask = tokens.padded(self._pad_id)
        hidden = self._session.run([self._output], self._feed(ids, mask))[0]
        if hidden.ndim == 2:
            return hidden
        return hidden[:, 0] if self._pooling == "cls" else mean_pool(hidden, mask)

    def _feed(self, ids: TokenIds, mask: TokenIds) -> dict[str, TokenIds]:
        feed = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(ids)
        return feed


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load_tokenizer(weights: Weights) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(weights.tokenizer))
    except Exception as error:  # tokenizers raises nothing more precise
        raise InvalidArgument(f"{weights.tokenizer} is not a tokenizer: {error}") from error
    tokenizer.no_padding()  # files often pad all texts to a fixed length, which multiplies the work
    tokenizer.enable_truncation(weights.max_tokens)
    return tokenizer


def _pad_id(tokenizer: Tokenizer) -> int:
    ids = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
    return next((token_id for token_id in ids if token_id is not None), 0)


def _open_session(weights: Weights, gpu: GpuSettings, threads: int) -> tuple[Any, Choice]:
    onnxruntime.set_default_logger_severity(_LOG_ERRORS)
    choice = choose(gpu, onnxruntime.get_available_providers())
    session = _session(weights, choice, threads)
    if session.get_providers()[0] != choice.provider:
        # ONNX Runtime itself goes on without a word on the CPU where the driver or its libraries are missing.
        choice = fall_back(gpu, f"{choice.provider} could not start; see the log of ONNX Runtime")
        session = _session(weights, choice, threads)
    return session, choice


def _session(weights: Weights, choice: Choice, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _LOG_ERRORS
    # Idle workers would spin on the cores that the tokenizer and Redis need between two batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = [(choice.provider, choice.options)]
    if choice.provider != CPU:
        providers.append(CPU)
    try:
        return onnxruntime.InferenceSession(str(weights.model), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise InvalidArgument(
            f"ONNX Runtime cannot load {weights.model}: {str(error)[:200]}", hint="reinstall or fetch the model again"
        ) from error
