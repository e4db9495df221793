"""The options of an encoder, in one object for all engines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memory_core.settings.settings import GpuSettings

Hint = Literal["throughput", "latency"]


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """Flags and settings of the encoder.

    `threads` limits the cores of one inference (default: all that this process may use). `hint` says how OpenVINO
    divides them. `engine_cache` is the folder for TensorRT engines. `exact` forbids half precision and int8
    arithmetic, for reference vectors.
    """

    model: str
    gpu: GpuSettings = field(default_factory=GpuSettings)
    threads: int | None = None
    hint: Hint = "throughput"
    engine_cache: Path | None = None
    exact: bool = False
