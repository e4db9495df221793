"""What a sidecar is asked to embed with; one object, so that every engine is opened in the same way."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memory_core.settings import GpuSettings

Hint = Literal["throughput", "latency"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Flags and settings of the encoder.

    `threads` bounds the cores of one inference (all that this process may run on by default), `hint` says how
    OpenVINO divides them, and `engine_cache` is where TensorRT may keep its engines. `exact` forbids half precision
    and int8 arithmetic: for references.
    """

    model: str
    gpu: GpuSettings = field(default_factory=GpuSettings)
    threads: int | None = None
    hint: Hint = "throughput"
    engine_cache: Path | None = None
    exact: bool = False


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_bf16() -> bool:
    """Whether the CPU multiplies bf16 natively; engines that emulate it would only be slower."""
    cpuinfo = Path("/proc/cpuinfo")
    words = cpuinfo.read_text(errors="replace").split() if cpuinfo.is_file() else []
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)
