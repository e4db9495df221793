"""`make gpu-check`: checks that this machine's GPU computes the same vectors as the CPU, and measures its speed."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from memory_core.errors import MemoryServiceError
from memory_core.settings.settings import GpuSettings
from memory_embedder.bulk.gpu_check import check_bulk
from memory_embedder.devices.nvml import nvidia_gpus, open_nvidia_reader
from memory_embedder.engines.catalogue import EngineName, open_engine, usable_engines
from memory_embedder.engines.encoder import Encoder, encode
from memory_embedder.engines.encoder_options import EncoderOptions
from memory_embedder.engines.parity import MIN_COSINE, SENTENCES, lowest_cosine
from memory_embedder.engines.weights import DEFAULT_MODEL

_TEXTS = [f"{sentence} ({number})" for number in range(400) for sentence in SENTENCES]
_BUDGET = 16_384
_RUNS = 5


def main(arguments: list[str] | None = None) -> int:
    """Check every usable backend. Returns 1 if one differs from the CPU or no backend can use the GPU, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args(arguments)
    options = EncoderOptions(chosen.model, GpuSettings(preferred_device=chosen.device))
    outcomes = [*(_check(engine, options) for engine in usable_engines(options)), *check_bulk()]
    tried = [outcome for outcome in outcomes if outcome is not None]
    if tried:
        print("FAILED" if not all(tried) else "PASSED")
        return 0 if all(tried) else 1
    if names := nvidia_gpus():
        print(f"FAILED: {', '.join(names)} found, but no installed backend can use it; install the extra `gpu`")
        return 1
    print("SKIPPED: no GPU")
    return 0


def _check(engine: EngineName, options: EncoderOptions) -> bool | None:
    """Whether the GPU agrees with the CPU. None if this backend uses no GPU."""
    try:
        encoder = open_engine(engine, options)
    except MemoryServiceError as error:
        print(f"{engine}: cannot open it: {error.message}")
        return None
    if encoder.device == "cpu":
        print(f"{engine}: computes on the CPU{': ' + encoder.fallback if encoder.fallback else ''}")
        return None
    exact = open_engine(engine, replace(options, gpu=GpuSettings(preferred_device="cpu"), exact=True))
    cosine = lowest_cosine(encode(encoder, SENTENCES), encode(exact, SENTENCES))
    agrees = cosine >= MIN_COSINE
    print(f"{engine}: {encoder.provider} on {encoder.device}: lowest cosine to the CPU {cosine:.5f}", end=" ")
    print("(good enough)" if agrees else f"(LESS than {MIN_COSINE})")
    _measure(encoder)
    return agrees


def _measure(encoder: Encoder) -> None:
    encode(encoder, _TEXTS, _BUDGET)
    speeds: list[float] = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        encode(encoder, _TEXTS, _BUDGET)
        speeds.append(len(_TEXTS) / (time.perf_counter() - started))
    print(f"{encoder.backend}: {sorted(speeds)[_RUNS // 2]:.0f} texts/s, median of {_RUNS} (tokenising included)")
    if reader := open_nvidia_reader(encoder.device):
        print(f"{encoder.backend}: {reader.read()}")


if __name__ == "__main__":
    sys.exit(main())
