"""Embeds with ONNX Runtime, which runs on laptops and on GPU nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from memory_core.crypto.secret_files import private_folder
from memory_core.errors import InvalidArgument
from memory_core.records.vectors import Matrix
from memory_core.settings.settings import GpuSettings
from memory_embedder.devices.cpu import available_cores
from memory_embedder.engines.encoder import Tokens
from memory_embedder.engines.onnx_file import OnnxFileEncoder
from memory_embedder.engines.providers import CPU, ProviderChoice, candidates, fall_back, without_accelerator
from memory_embedder.engines.weights import Weights, choose_output

_LOG_ERRORS = 3


class OnnxEncoder(OnnxFileEncoder):
    """An ONNX model in ONNX Runtime. See `Encoder`."""

    backend = "onnx"

    def __init__(
        self, weights: Weights, gpu: GpuSettings, *, threads: int | None = None, engine_cache: Path | None = None
    ) -> None:
        """Load the model.

        `threads` limits the cores of one inference; default: all that this process may use. `engine_cache` is a
        folder for TensorRT engines; without it TensorRT is not used.

        Raises:
            InvalidArgument: the files are not a usable model.
            NotSupported: the requested device is not available, or the model has a part that only Torch computes.
        """
        super().__init__(weights)
        self._session, choice = _open_session(weights, gpu, threads or available_cores(), engine_cache)
        self.provider, self.device, self.fallback = choice.provider, choice.device, choice.fallback
        self._inputs = {node.name for node in self._session.get_inputs()}
        outputs = [node.name for node in self._session.get_outputs()]
        self._output = choose_output(weights, outputs)
        self.dimension = int(self._pooled(self.tokenise(["dimension"])).shape[-1])

    def _pooled(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        feed, mask = self._feed(tokens)
        return self._pool(self._session.run([self._output], feed)[0], mask)


def _open_session(
    weights: Weights, gpu: GpuSettings, threads: int, engine_cache: Path | None
) -> tuple[Any, ProviderChoice]:
    onnxruntime.set_default_logger_severity(_LOG_ERRORS)
    failures: list[str] = []
    if engine_cache:
        private_folder(engine_cache)  # ONNX Runtime runs what it finds there
    for choice in candidates(gpu, onnxruntime.get_available_providers(), engine_cache):
        try:
            session = _session(weights, choice, threads)
        except InvalidArgument as error:
            failures.append(f"{choice.provider} failed: {error.message[-120:]}")
            continue
        # ONNX Runtime silently uses the CPU if the driver or its libraries are missing.
        if session.get_providers()[0] == choice.provider:
            return session, ProviderChoice(choice.provider, choice.device, choice.options, "; ".join(failures))
        failures.append(f"{choice.provider} could not start; see the log of ONNX Runtime")
    choice = fall_back(gpu, "; ".join(failures)) if failures else without_accelerator(gpu)
    return _session(weights, choice, threads), choice


def _session(weights: Weights, choice: ProviderChoice, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _LOG_ERRORS
    # Idle workers would spin on cores that the tokenizer and Redis need between two batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = [(choice.provider, choice.options)]
    if choice.provider != CPU:
        providers.append(CPU)
    try:
        return onnxruntime.InferenceSession(str(weights.model), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no public base
        raise InvalidArgument(
            f"ONNX Runtime cannot load {weights.model}: {str(error)[:200]}", hint="reinstall or fetch the model again"
        ) from error
