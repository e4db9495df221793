"""The CPU cores that this process may use, and what they compute natively."""

from __future__ import annotations

import os
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def available_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_bf16() -> bool:
    """Whether the CPU multiplies bf16 natively. Emulated bf16 is slower than float32."""
    words = _CPUINFO.read_text(errors="replace").split() if _CPUINFO.is_file() else []
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)
