"""Reads an NVIDIA GPU's memory, load, temperature and power; without one there is nothing to read."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class GpuReading:
    """Memory in bytes, `utilisation` from 0 to 1, `temperature` in °C, `power` in watts.

    None is what the driver does not say.
    """

    memory_used: int | None = None
    memory_total: int | None = None
    utilisation: float | None = None
    temperature: float | None = None
    power: float | None = None


class GpuReader:
    """One GPU as the driver sees it."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle

    def read(self) -> GpuReading:
        """Read what the driver says now; never raises, because a heartbeat must go out all the same."""
        library, handle = self._library, self._handle
        memory = _ask(library.nvmlDeviceGetMemoryInfo, handle)
        rates = _ask(library.nvmlDeviceGetUtilizationRates, handle)
        degrees = _ask(library.nvmlDeviceGetTemperature, handle, library.NVML_TEMPERATURE_GPU)
        milliwatts = _ask(library.nvmlDeviceGetPowerUsage, handle)
        return GpuReading(
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            utilisation=None if rates is None else rates.gpu / 100,
            temperature=None if degrees is None else float(degrees),
            power=None if milliwatts is None else milliwatts / 1000,
        )


def open_reader(device: str, library: Any = None) -> GpuReader | None:
    """A reader for a device such as `cuda:1`; None for other devices, without nvidia-ml-py or without a driver."""
    if not device.startswith("cuda"):
        return None
    try:
        library = library or importlib.import_module("pynvml")
        library.nvmlInit()
        return GpuReader(library, _handle(library, int(device.partition(":")[2] or 0)))
    except Exception:  # ImportError, or whatever the driver's absence raises
        return None


def gpu_names(library: Any = None) -> list[str]:
    """Names of the NVIDIA GPUs of this machine; none without nvidia-ml-py or without a driver."""
    try:
        library = library or importlib.import_module("pynvml")
        library.nvmlInit()
        handles = [library.nvmlDeviceGetHandleByIndex(number) for number in range(library.nvmlDeviceGetCount())]
        return [str(library.nvmlDeviceGetName(handle)) for handle in handles]
    except Exception:  # as above
        return []


def _handle(library: Any, number: int) -> Any:
    """The driver counts all GPUs, the engine only those that CUDA_VISIBLE_DEVICES shows it."""
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    if not visible:
        return library.nvmlDeviceGetHandleByIndex(number)
    shown = visible[number]
    if shown.isdigit():
        return library.nvmlDeviceGetHandleByIndex(int(shown))
    return library.nvmlDeviceGetHandleByUUID(shown)


def _ask(question: Any, *arguments: Any) -> Any:
    try:
        return question(*arguments)
    except Exception:  # some GPUs and MIG slices do not answer every question
        return None
