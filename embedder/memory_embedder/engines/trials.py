"""Measures the installed engines against each other, so that `--backend auto` chooses by figures.

Each engine is tried in a process of its own: one that hangs or crashes harms nobody, and none leaves its libraries
in the sidecar's memory. What was found is kept in a small file of the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel, TypeAdapter, ValidationError

from memory_core.errors import InvalidArgument, MemoryServiceError
from memory_core.settings import GpuSettings
from memory_embedder.devices.cpu import available_cores
from memory_embedder.devices.nvml import nvidia_gpus
from memory_embedder.engines.catalogue import EngineName, open_engine
from memory_embedder.engines.encoder_options import EncoderOptions, Hint
from memory_embedder.engines.parity import SENTENCES
from memory_embedder.engines.weights import find_folder, find_weights

_log = logging.getLogger(__name__)
TRIAL_SECONDS = 1.0
"""How long an engine is measured, once it is loaded and warm."""
LOAD_SECONDS = 60.0
"""How long a trial may take in all; importing Torch from a cold disk takes tens of seconds."""
_BATCH = SENTENCES * 3
_DISTRIBUTIONS = (
    *("redis-memory-gpu", "numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    *("openvino", "torch", "sentence-transformers", "transformers"),
)


class TrialResult(BaseModel):
    """What a trial found: `texts_per_second` on `device`, or why the engine cannot be used."""

    engine: EngineName
    device: str = ""
    texts_per_second: float = 0.0
    problem: str = ""


_FIGURES = TypeAdapter(list[TrialResult])


class TrialRequest(BaseModel):
    """What a trial's process is told, as JSON on its standard input."""

    engine: EngineName
    model: str
    gpu: GpuSettings
    threads: int | None
    hint: Hint
    engine_cache: Path | None


def trial_results(
    engines: Sequence[EngineName], wanted: EncoderOptions, cache: Path | None = None
) -> list[TrialResult]:
    """The figures of an earlier trial of the same engines on the same machine, else those of a new one."""
    path = cache or platformdirs.user_cache_path("redis-memory-gpu") / "backends.json"
    key = _key(engines, wanted)
    known = _read(path)
    try:
        return _FIGURES.validate_python(known[key])
    except (KeyError, ValidationError):
        figures = [run_trial(engine, wanted) for engine in engines]
    if any(not figure.problem for figure in figures):
        _write(path, known | {key: [figure.model_dump() for figure in figures]})
    return figures


def rank(figures: Sequence[TrialResult]) -> list[TrialResult]:
    """Engines that work: those on an accelerator first, then by speed."""
    working = [figure for figure in figures if not figure.problem]
    return sorted(working, key=lambda figure: (figure.device == "cpu", -figure.texts_per_second))


def trial_summary(figures: Sequence[TrialResult]) -> str:
    """One line for the log and the heartbeat, best first."""
    told = [f"{figure.engine} {figure.texts_per_second:.0f} texts/s on {figure.device}" for figure in rank(figures)]
    failed = [f"{figure.engine} failed: {figure.problem[:80]}" for figure in figures if figure.problem]
    return ", ".join(told + failed)


def run_trial(engine: EngineName, wanted: EncoderOptions) -> TrialResult:
    """Measure one engine in a process of its own."""
    ask = TrialRequest(
        engine=engine,
        model=wanted.model,
        gpu=wanted.gpu,
        threads=wanted.threads,
        hint=wanted.hint,
        engine_cache=wanted.engine_cache,
    )
    command = [sys.executable, "-P", "-m", "memory_embedder.engines.trials"]
    try:
        done = subprocess.run(  # noqa: S603 our own interpreter and module
            command, input=ask.model_dump_json(), capture_output=True, text=True, timeout=LOAD_SECONDS, check=False
        )
        return TrialResult.model_validate_json(done.stdout.strip().rsplit("\n", 1)[-1])
    except subprocess.TimeoutExpired:
        return TrialResult(engine=engine, problem=f"not ready after {LOAD_SECONDS:.0f} s")
    except ValidationError:
        return TrialResult(engine=engine, problem="its process ended without a figure")


def measure(ask: TrialRequest) -> TrialResult:
    """Open an engine here and measure it for TRIAL_SECONDS."""
    wanted = EncoderOptions(ask.model, ask.gpu, ask.threads, ask.hint, ask.engine_cache)
    try:
        encoder = open_engine(ask.engine, wanted)
        encoder.infer(encoder.tokenise(_BATCH))
        texts, started = 0, time.perf_counter()
        while time.perf_counter() < started + TRIAL_SECONDS:
            encoder.infer(encoder.tokenise(_BATCH))
            texts += len(_BATCH)
        speed = texts / (time.perf_counter() - started)
    except MemoryServiceError as error:
        return TrialResult(engine=ask.engine, problem=error.message)
    except Exception as error:  # whatever an engine raises on this machine
        return TrialResult(engine=ask.engine, problem=f"{type(error).__name__}: {error}")
    return TrialResult(engine=ask.engine, device=encoder.device, texts_per_second=round(speed, 1))


def _key(engines: Sequence[EngineName], wanted: EncoderOptions) -> str:
    """A digest of everything that the figures depend on: machine, versions, weights and flags."""
    facts = [platform.machine(), _processor(), available_cores(), nvidia_gpus(), platform.python_version()]
    flags = [wanted.gpu.model_dump(mode="json"), wanted.threads, wanted.hint, str(wanted.engine_cache)]
    visible = [os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")]
    versions = {name: _version(name) for name in _DISTRIBUTIONS}
    parts = [list(engines), facts, flags, visible, versions, [_weights(engine, wanted) for engine in engines]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _weights(engine: EngineName, wanted: EncoderOptions) -> list[str]:
    try:
        path = find_folder(wanted.model).folder if engine == "torch" else find_weights(wanted.model).model
    except InvalidArgument:
        return []
    state = path.stat()
    return [str(path), str(state.st_size), str(state.st_mtime_ns)]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor()
    lines = cpuinfo.read_text(errors="replace").splitlines()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, figures: dict[str, Any]) -> None:
    """Replace the file in one step: several sidecars may start at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(figures, file, indent=1)
        Path(file.name).replace(path)
    except OSError as error:
        _log.info("the figures of the backends are not kept: %s", error)


if __name__ == "__main__":
    figure = measure(TrialRequest.model_validate_json(sys.stdin.read()))
    print(figure.model_dump_json())
