"""Opens the requested engine, or the fastest of the installed ones."""

from __future__ import annotations

import logging
from typing import Literal

from memory_core.errors import MemoryServiceError, NotSupported
from memory_embedder.engines.catalogue import open_engine, usable_engines
from memory_embedder.engines.encoder import Encoder
from memory_embedder.engines.encoder_options import EncoderOptions
from memory_embedder.engines.trials import rank, trial_results, trial_summary

_log = logging.getLogger(__name__)
Backend = Literal["auto", "onnx", "openvino", "torch"]


def load_encoder(backend: Backend, options: EncoderOptions) -> Encoder:
    """Open one engine. With "auto", open the best engine that is installed and has weights.

    Raises:
        NotSupported: packages or the device are missing.
        InvalidArgument, FileAltered: see `weights.find_weights`.
    """
    return _best(options) if backend == "auto" else open_engine(backend, options)


def _best(options: EncoderOptions) -> Encoder:
    """Open the best engine by trial; the next one if it fails. With one usable engine there is no trial."""
    engines = usable_engines(options)
    if len(engines) < 2:
        return open_engine(engines[0] if engines else "onnx", options)
    results = trial_results(engines, options)
    problem: MemoryServiceError | None = None
    for result in rank(results):
        try:
            encoder = open_engine(result.engine, options)
        except MemoryServiceError as error:
            _log.warning("cannot open the backend %s: %s", result.engine, error.message)
            problem = problem or error
            continue
        summary = trial_summary(results)
        _log.info("chose the backend %s: %s", result.engine, summary)
        encoder.provider = f"{encoder.provider} (chosen by a trial: {summary})"
        return encoder
    raise problem or NotSupported(f"no backend works: {trial_summary(results)}", hint="name one with --backend")
