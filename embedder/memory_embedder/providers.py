"""Chooses where ONNX Runtime computes, and says so when it is not what was wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from memory_core.errors import NotSupported
from memory_core.settings import GpuSettings

CPU = "CPUExecutionProvider"
_PROVIDERS = {
    "cuda": ("CUDAExecutionProvider",),
    "rocm": ("MIGraphXExecutionProvider", "ROCMExecutionProvider"),
    "mps": ("CoreMLExecutionProvider",),
    "xpu": ("OpenVINOExecutionProvider",),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A provider with its options, the device it stands for, and why it is not the wanted one."""

    provider: str
    device: str
    options: dict[str, str] = field(default_factory=dict)
    fallback: str = ""


def choose(settings: GpuSettings, available: Sequence[str]) -> Choice:
    """Choose a provider among those that this ONNX Runtime was built with.

    Raises:
        NotSupported: the wanted device is not available and `fallback_to_cpu` is off.
    """
    wanted = settings.preferred_device
    if wanted == "cpu" or not settings.enable_acceleration:
        return Choice(CPU, "cpu")
    if wanted == "auto":
        choices = (_accelerator(kind, 0, available) for kind in _PROVIDERS)
        return next((choice for choice in choices if choice), Choice(CPU, "cpu"))
    kind, _, number = wanted.partition(":")
    found = _accelerator(kind, int(number or 0), available)
    return found or fall_back(settings, f"this ONNX Runtime has no {_PROVIDERS[kind][0]} for {wanted}")


def fall_back(settings: GpuSettings, reason: str) -> Choice:
    """Choose the CPU, for a reason that the heartbeat will show.

    Raises:
        NotSupported: `fallback_to_cpu` is off.
    """
    if not settings.fallback_to_cpu:
        raise NotSupported(
            reason,
            hint="install the extra `gpu` (onnxruntime-gpu) and its driver, use --device cpu,"
            " or set gpu.fallback_to_cpu",
        )
    return Choice(CPU, "cpu", fallback=reason)


def _accelerator(kind: str, number: int, available: Sequence[str]) -> Choice | None:
    provider = next((name for name in _PROVIDERS[kind] if name in available), None)
    if provider is None:
        return None
    if kind in {"cuda", "rocm"}:
        return Choice(provider, f"{kind}:{number}", {"device_id": str(number)})
    return Choice(provider, kind, {"device_type": "GPU"} if kind == "xpu" else {})
