"""Reads memory, utilisation, temperature and power of an AMD GPU from the amdgpu driver's files.

rocm-smi reads the same files, so no library is needed.
"""

from __future__ import annotations

import os
from pathlib import Path

from memory_embedder.devices.nvml import GpuReading

_AMD = "0x1002"
DRM = Path("/sys/class/drm")


class AmdReader:
    """Reads one GPU."""

    def __init__(self, device: Path) -> None:
        self._device = device

    def read(self) -> GpuReading:
        """Read the current values. Never raises."""
        busy = _number(self._device / "gpu_busy_percent")
        degrees, watts = self._sensor("temp1_input"), self._sensor("power1_average", "power1_input")
        return GpuReading(
            memory_used=_number(self._device / "mem_info_vram_used"),
            memory_total=_number(self._device / "mem_info_vram_total"),
            utilisation=None if busy is None else busy / 100,
            temperature=None if degrees is None else degrees / 1000,
            power=None if watts is None else watts / 1e6,
        )

    def _sensor(self, *names: str) -> int | None:
        paths = (path for name in names for path in sorted(self._device.glob(f"hwmon/hwmon*/{name}")))
        return next((number for path in paths if (number := _number(path)) is not None), None)


def amd_gpus(drm: Path = DRM) -> list[Path]:
    """Device folders of the AMD GPUs of this machine, in the order in which ROCm counts them (by bus address)."""
    cards = [path / "device" for path in drm.glob("card*") if path.name.removeprefix("card").isdigit()]
    found = {card.resolve() for card in cards if _text(card / "vendor") == _AMD}
    return sorted(found, key=lambda path: path.name)


def open_amd_reader(device: str, drm: Path = DRM) -> AmdReader | None:
    """A reader for a device such as `rocm:1` (`cuda:1` in Torch). None if there is no such AMD GPU."""
    kind, _, number = device.partition(":")
    if kind not in {"rocm", "cuda"}:
        return None
    visible = os.environ.get("HIP_VISIBLE_DEVICES") or os.environ.get("ROCR_VISIBLE_DEVICES") or ""
    numbers = [int(part) for part in visible.split(",") if part.strip().isdigit()]
    try:
        position = numbers[int(number or 0)] if numbers else int(number or 0)
        return AmdReader(amd_gpus(drm)[position])
    except IndexError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None
