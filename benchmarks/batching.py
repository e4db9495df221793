"""Texts per second of each installed engine, by batch size. `python -m benchmarks.batching`.

The texts are turns of conversations. Every round runs each size in turn, in one process.
"""

from __future__ import annotations

import importlib.util
import time
from statistics import median

from benchmarks import results
from benchmarks.evalset import load
from memory_core.settings.settings import GpuSettings
from memory_embedder.engines.backends import Backend, load_encoder
from memory_embedder.engines.encoder import Encoder, encode
from memory_embedder.engines.encoder_options import EncoderOptions

ENGINES: dict[Backend, str] = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "sentence_transformers"}
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ROUNDS, LEAST = 5, 64
MODEL = "all-MiniLM-L6-v2"


def measure() -> dict[Backend, dict[int, float]]:
    """The median rate of each engine at each size."""
    texts = [memory["text"] for one in load("locomo") for memory in one.memories][: max(SIZES)]
    engines: list[Backend] = [name for name, package in ENGINES.items() if importlib.util.find_spec(package)]
    encoders: dict[Backend, Encoder] = {
        name: load_encoder(name, EncoderOptions(MODEL, GpuSettings())) for name in engines
    }
    rates: dict[Backend, dict[int, list[float]]] = {name: {size: [] for size in SIZES} for name in engines}
    for _ in range(ROUNDS):
        for size in SIZES:
            for name, encoder in encoders.items():
                began, done = time.perf_counter(), 0
                while done < LEAST:
                    encode(encoder, texts[done % len(texts) : done % len(texts) + size])
                    done += size
                rates[name][size].append(done / (time.perf_counter() - began))
    return {name: {size: round(median(found), 1) for size, found in row.items()} for name, row in rates.items()}


def main() -> None:
    """Measure, print the table and save it as JSON."""
    measured = measure()
    results.save("batching", measured)
    rows = [{"texts at once": size, **{name: row[size] for name, row in measured.items()}} for size in SIZES]
    results.show("texts a second", rows)


if __name__ == "__main__":
    main()
