"""Reads memory, utilisation, temperature and power of an NVIDIA GPU through NVML."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class GpuReading:
    """Memory in bytes, `utilisation` from 0 to 1, `temperature` in °C, `power` in watts.

    None if the driver does not report a value.
    """

    memory_used: int | None = None
    memory_total: int | None = None
    utilisation: float | None = None
    temperature: float | None = None
    power: float | None = None


class NvidiaReader:
    """Reads one GPU."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle

    def read(self) -> GpuReading:
        """Read the current values. Never raises, because the heartbeat must go out."""
        library, handle = self._library, self._handle
        memory = _query(library.nvmlDeviceGetMemoryInfo, handle)
        rates = _query(library.nvmlDeviceGetUtilizationRates, handle)
        degrees = _query(library.nvmlDeviceGetTemperature, handle, library.NVML_TEMPERATURE_GPU)
        milliwatts = _query(library.nvmlDeviceGetPowerUsage, handle)
        return GpuReading(
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            utilisation=None if rates is None else rates.gpu / 100,
            temperature=None if degrees is None else float(degrees),
            power=None if milliwatts is None else milliwatts / 1000,
        )


def open_nvidia_reader(device: str, library: Any = None) -> NvidiaReader | None:
    """A reader for a device such as `cuda:1`. None for other devices, without nvidia-ml-py or without a driver."""
    if not device.startswith("cuda"):
        return None
    try:
        library = library or importlib.import_module("pynvml")
        library.nvmlInit()
        return NvidiaReader(library, _handle(library, int(device.partition(":")[2] or 0)))
    except Exception:  # nvidia-ml-py or the driver is missing
        return None


def nvidia_gpus(library: Any = None) -> list[str]:
    """Names of the NVIDIA GPUs of this machine. Empty without nvidia-ml-py or without a driver."""
    try:
        library = library or importlib.import_module("pynvml")
        library.nvmlInit()
        handles = [library.nvmlDeviceGetHandleByIndex(number) for number in range(library.nvmlDeviceGetCount())]
        return [str(library.nvmlDeviceGetName(handle)) for handle in handles]
    except Exception:  # nvidia-ml-py or the driver is missing
        return []


def _handle(library: Any, number: int) -> Any:
    """The driver counts all GPUs; the engine counts only those in CUDA_VISIBLE_DEVICES."""
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    if not visible:
        return library.nvmlDeviceGetHandleByIndex(number)
    chosen = visible[number]
    if chosen.isdigit():
        return library.nvmlDeviceGetHandleByIndex(int(chosen))
    return library.nvmlDeviceGetHandleByUUID(chosen)


def _query(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception:  # some GPUs and MIG slices do not support every query
        return None
