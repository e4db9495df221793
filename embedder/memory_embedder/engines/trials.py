"""Measures the installed engines, so that `--backend auto` can choose the fastest.

Each trial runs in its own process, so that a crash or a hang does no harm and the libraries do not stay in memory.
The results are kept in a file in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel, TypeAdapter, ValidationError

from memory_core.crypto.secret_files import private_folder, write_private
from memory_core.errors import InvalidArgument, MemoryServiceError, UnsafeStart
from memory_core.settings.environment import for_sidecars
from memory_embedder.devices.cpu import available_cores
from memory_embedder.devices.nvml import nvidia_gpus
from memory_embedder.engines.catalogue import EngineName, open_engine
from memory_embedder.engines.encoder_options import EncoderOptions
from memory_embedder.engines.parity import SENTENCES
from memory_embedder.engines.weights import find_folder, find_weights

_log = logging.getLogger(__name__)
TRIAL_SECONDS = 1.0
"""Duration of the measurement, after loading and warm-up."""
LOAD_SECONDS = 60.0
"""Time limit of a trial. Importing Torch from a cold disk takes tens of seconds."""
_BATCH = SENTENCES * 3
_DISTRIBUTIONS = (
    *("redis-memory-gpu", "numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    *("openvino", "torch", "sentence-transformers", "transformers"),
)


class TrialResult(BaseModel):
    """`texts_per_second` on `device`, or the problem why the engine cannot be used."""

    engine: EngineName
    device: str = ""
    texts_per_second: float = 0.0
    problem: str = ""


_RESULTS = TypeAdapter(list[TrialResult])


class TrialRequest(BaseModel):
    """Input of a trial's process: JSON on stdin."""

    engine: EngineName
    options: EncoderOptions


def trial_results(
    engines: Sequence[EngineName], options: EncoderOptions, cache: Path | None = None
) -> list[TrialResult]:
    """The stored results for these engines on this machine, else those of new trials."""
    path = cache or platformdirs.user_cache_path("redis-memory-gpu") / "backends.json"
    key = _key(engines, options)
    known = _read(path)
    try:
        return _RESULTS.validate_python(known[key])
    except (KeyError, ValidationError):
        results = [run_trial(engine, options) for engine in engines]
    if any(not result.problem for result in results):
        _write(path, known | {key: [result.model_dump() for result in results]})
    return results


def rank(results: Sequence[TrialResult]) -> list[TrialResult]:
    """The working engines: first those on an accelerator, then by speed."""
    working = [result for result in results if not result.problem]
    return sorted(working, key=lambda result: (result.device == "cpu", -result.texts_per_second))


def trial_summary(results: Sequence[TrialResult]) -> str:
    """One line for the log and the heartbeat, best engine first."""
    measured = [f"{result.engine} {result.texts_per_second:.0f} texts/s on {result.device}" for result in rank(results)]
    failed = [f"{result.engine} failed: {result.problem[:80]}" for result in results if result.problem]
    return ", ".join(measured + failed)


def run_trial(engine: EngineName, options: EncoderOptions) -> TrialResult:
    """Measure one engine in a separate process."""
    request = TrialRequest(engine=engine, options=options)
    command = [sys.executable, "-P", "-m", "memory_embedder.engines.trials"]
    try:
        done = subprocess.run(  # noqa: S603 our own interpreter and module
            command,
            input=request.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=LOAD_SECONDS,
            check=False,
            env=for_sidecars(),
        )
        return TrialResult.model_validate_json(done.stdout.strip().rsplit("\n", 1)[-1])
    except subprocess.TimeoutExpired:
        return TrialResult(engine=engine, problem=f"not ready after {LOAD_SECONDS:.0f} s")
    except ValidationError:
        return TrialResult(engine=engine, problem="its process ended without a result")


def measure(request: TrialRequest) -> TrialResult:
    """Open an engine in this process and measure it for TRIAL_SECONDS."""
    try:
        encoder = open_engine(request.engine, request.options)
        encoder.infer(encoder.tokenise(_BATCH))
        texts, started = 0, time.perf_counter()
        while time.perf_counter() < started + TRIAL_SECONDS:
            encoder.infer(encoder.tokenise(_BATCH))
            texts += len(_BATCH)
        speed = texts / (time.perf_counter() - started)
    except MemoryServiceError as error:
        return TrialResult(engine=request.engine, problem=error.message)
    except Exception as error:  # engines have no common error type
        return TrialResult(engine=request.engine, problem=f"{type(error).__name__}: {error}")
    return TrialResult(engine=request.engine, device=encoder.device, texts_per_second=round(speed, 1))


def _key(engines: Sequence[EngineName], options: EncoderOptions) -> str:
    """A digest of all that the results depend on: machine, versions, weights and flags."""
    facts = [platform.machine(), _processor(), available_cores(), nvidia_gpus(), platform.python_version()]
    flags = [options.gpu.model_dump(mode="json"), options.threads, options.hint, str(options.engine_cache)]
    visible = [os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")]
    versions = {name: _version(name) for name in _DISTRIBUTIONS}
    parts = [list(engines), facts, flags, visible, versions, [_weights(engine, options) for engine in engines]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _weights(engine: EngineName, options: EncoderOptions) -> list[str]:
    try:
        path = find_folder(options.model).folder if engine == "torch" else find_weights(options.model).model
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


def _write(path: Path, results: dict[str, Any]) -> None:
    """Replace the file atomically, because several sidecars may start at once."""
    try:
        private_folder(path.parent)
        write_private(path, json.dumps(results, indent=1))
    except (OSError, UnsafeStart) as error:
        _log.info("cannot store the results of the trials: %s", error)


if __name__ == "__main__":
    result = measure(TrialRequest.model_validate_json(sys.stdin.read()))
    print(result.model_dump_json())
