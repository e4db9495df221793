"""Opens the engine that the flags name, or finds out which of the installed ones is the fastest here."""

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


def load_encoder(backend: Backend, wanted: EncoderOptions) -> Encoder:
    """Open one engine, or the best of those that are installed and have weights.

    Raises:
        NotSupported: packages or the device are missing.
        InvalidArgument, WeightsAltered: see `weights.find_weights`.
    """
    return _best(wanted) if backend == "auto" else open_engine(backend, wanted)


def _best(wanted: EncoderOptions) -> Encoder:
    """The first that opens, in the order of a measurement; with one usable engine there is nothing to measure."""
    engines = usable_engines(wanted)
    if len(engines) < 2:
        return open_engine(engines[0] if engines else "onnx", wanted)
    figures = trial_results(engines, wanted)
    problem: MemoryServiceError | None = None
    for figure in rank(figures):
        try:
            encoder = open_engine(figure.engine, wanted)
        except MemoryServiceError as error:
            _log.warning("the backend %s cannot be opened: %s", figure.engine, error.message)
            problem = problem or error
            continue
        said = trial_summary(figures)
        _log.info("the backend %s is chosen: %s", figure.engine, said)
        encoder.provider = f"{encoder.provider} (chosen by a trial: {said})"
        return encoder
    raise problem or NotSupported(f"no backend works: {trial_summary(figures)}", hint="name one with --backend")
