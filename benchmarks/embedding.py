"""Texts per second of each inference engine, sentence-transformers and plain ONNX Runtime, in one run.

Every engine has its own process that stays loaded. They take turns, so that disturbances affect all of them. The Torch
engines need the environment of `make test-torch`, and are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.evalset import load
from memory_core.records.vectors import Matrix
from memory_core.settings.settings import GpuSettings
from memory_embedder.devices.cpu import available_cores
from memory_embedder.engines.catalogue import EngineName, open_engine
from memory_embedder.engines.encoder import encode
from memory_embedder.engines.encoder_options import EncoderOptions
from memory_embedder.engines.weights import find_folder, find_weights

TEXTS = 256
ROUNDS = 5
MODEL = "all-MiniLM-L6-v2"
FLOOR, REFERENCE = "sentence-transformers", "torch, exact"
_BUDGET = 4096
Embed = Callable[[list[str]], Matrix]


def ours(engine: EngineName, *, exact: bool = False) -> Embed:
    """Embed as a sidecar does: sorted by length, in batches by tokens, in the engine's best precision."""
    encoder = open_engine(engine, EncoderOptions(MODEL, GpuSettings(), exact=exact))
    return lambda texts: encode(encoder, texts, _BUDGET)


def sentence_transformers() -> Embed:
    """Embed with the library's defaults."""
    library: Any = import_module("sentence_transformers")
    model = library.SentenceTransformer(str(find_folder(MODEL).folder), device="cpu")
    return lambda texts: np.asarray(model.encode(texts, normalize_embeddings=True), dtype=np.float32)


def plain_onnx() -> Embed:
    """Embed with plain ONNX Runtime: in the given order, 32 at a time, padded to the longest."""
    import onnxruntime

    weights = find_weights(MODEL)
    session = onnxruntime.InferenceSession(str(weights.model), providers=["CPUExecutionProvider"])
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(weights.tokenizer))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    names = {item.name for item in session.get_inputs()}

    def embed_batch(texts: list[str]) -> Matrix:
        encoded = tokenizer.encode_batch(texts)
        ids, mask = (np.array([getattr(row, name) for row in encoded]) for name in ("ids", "attention_mask"))
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden: Matrix = np.asarray(
            session.run(None, {name: value for name, value in feed.items() if name in names})[0]
        )
        pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        return (pooled / np.linalg.norm(pooled, axis=1, keepdims=True)).astype(np.float32)

    return lambda texts: np.concatenate([embed_batch(texts[at : at + 32]) for at in range(0, len(texts), 32)])


ENGINES: dict[str, tuple[tuple[str, ...], Callable[[], Embed]]] = {
    FLOOR: (("sentence_transformers",), sentence_transformers),
    "plain ONNX Runtime, packaged int8": (("onnxruntime",), plain_onnx),
    "sidecar, onnx": (("onnxruntime",), lambda: ours("onnx")),
    "sidecar, torch": (("sentence_transformers",), lambda: ours("torch")),
    "sidecar, openvino": (("openvino",), lambda: ours("openvino")),
    REFERENCE: (("sentence_transformers",), lambda: ours("torch", exact=True)),
}
"""The engines: the packages each needs, and how to open it."""


def work(name: str) -> None:
    """Run one engine: reads lines of JSON texts, writes their vectors to a file and prints the seconds."""
    embed = ENGINES[name][1]()
    for line in sys.stdin:
        ask = json.loads(line)
        wall, processor = time.perf_counter(), time.process_time()
        vectors = embed(ask["texts"])
        taken = time.perf_counter() - wall, time.process_time() - processor
        np.save(ask["file"], vectors)
        print(json.dumps(taken), flush=True)


class Worker:
    """The process of one engine."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._file = folder / f"{name.replace(', ', '-').replace(' ', '-')}.npy"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.embedding", "--engine", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def embed(self, texts: list[str]) -> tuple[float, float]:
        """Embed texts; return seconds of wall time and of CPU time.

        Raises:
            RuntimeError: the engine does not work here.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"texts": texts, "file": str(self._file)}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            wall, processor = json.loads(answer)
        except (BrokenPipeError, ValueError) as error:
            raise RuntimeError(f"{self.name} does not work here") from error
        return wall, processor

    def vectors(self) -> Matrix:
        """The vectors of the last texts, shape (texts, dimension)."""
        return np.load(self._file)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(texts: list[str], folder: Path) -> dict[str, Any]:
    """Let all installed engines embed the same texts in turn."""
    workers = [Worker(name, folder) for name, (needs, _) in ENGINES.items() if all(map(find_spec, needs))]
    try:
        for worker in workers:
            worker.embed(texts)
        rounds = [{worker.name: worker.embed(texts) for worker in workers} for _ in range(ROUNDS)]
        vectors = {worker.name: worker.vectors() for worker in workers}
    finally:
        for worker in workers:
            worker.close()
    floor = FLOOR if FLOOR in vectors else workers[0].name
    rows = [_row(name, floor, rounds, vectors, len(texts)) for name in vectors]
    return {"texts": len(texts), "cores": available_cores(), "floor": floor, "engines": rows}


def _row(
    name: str, floor: str, rounds: Sequence[dict[str, tuple[float, float]]], vectors: dict[str, Matrix], texts: int
) -> dict[str, Any]:
    ratios = [one[floor][0] / one[name][0] for one in rounds]
    row: dict[str, Any] = {
        "engine": name,
        "texts_per_second": round(texts / median(one[name][0] for one in rounds), 1),
        "texts_per_cpu_second": round(texts / median(one[name][1] for one in rounds), 1),
        "times_the_floor": round(median(ratios), 2),
        "least": round(min(ratios), 2),
        "most": round(max(ratios), 2),
    }
    if REFERENCE in vectors:
        cosines = np.einsum("ij,ij->i", vectors[name], vectors[REFERENCE])
        row |= {"lowest_cosine": round(float(cosines.min()), 5), "mean_cosine": round(float(cosines.mean()), 5)}
    return row


def main() -> None:
    """Measure, or run as one engine's process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=ENGINES)
    if engine := parser.parse_args().engine:
        work(engine)
        return
    import tempfile

    texts = [memory["text"] for conversation in load("locomo") for memory in conversation.memories][:TEXTS]
    with tempfile.TemporaryDirectory() as folder:
        report = measure(texts, Path(folder))
    results.save("embedding", report)
    results.show(f"{report['texts']} texts on {report['cores']} cores; ratios to {report['floor']}", report["engines"])


if __name__ == "__main__":
    main()
