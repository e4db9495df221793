"""Chooses the execution provider of ONNX Runtime, and why it is not the requested device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memory_core.errors import NotSupported
from memory_core.settings.settings import GpuSettings

CPU = "CPUExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
_PROVIDERS = {
    "cuda": (TENSORRT, "CUDAExecutionProvider"),
    "rocm": ("MIGraphXExecutionProvider", "ROCMExecutionProvider"),
    "mps": ("CoreMLExecutionProvider",),
    "xpu": ("OpenVINOExecutionProvider",),
}


@dataclass(frozen=True, slots=True)
class ProviderChoice:
    """A provider, its options and device, and why it is not the requested device (empty if it is)."""

    provider: str
    device: str
    options: dict[str, str] = field(default_factory=dict)
    fallback: str = ""


def candidates(
    settings: GpuSettings, available: Sequence[str], engine_cache: Path | None = None
) -> list[ProviderChoice]:
    """The accelerators to try, best first, among the providers of this ONNX Runtime.

    TensorRT builds an engine for each new range of shapes, which takes minutes. So it is tried only with an
    `engine_cache` folder, where the engines survive the process.
    """
    requested = settings.preferred_device
    if requested == "cpu" or not settings.enable_acceleration:
        return []
    kind, _, number = requested.partition(":")
    kinds = tuple(_PROVIDERS) if kind == "auto" else (kind,)
    return [
        _choice(provider, kind, int(number or 0), engine_cache)
        for kind in kinds
        for provider in _PROVIDERS[kind]
        if provider in available and (provider != TENSORRT or engine_cache)
    ]


def without_accelerator(settings: GpuSettings) -> ProviderChoice:
    """The CPU, with the reason if an accelerator was requested that this ONNX Runtime does not support.

    Raises:
        NotSupported: an accelerator was requested and `fallback_to_cpu` is off.
    """
    requested = settings.preferred_device
    if requested in {"auto", "cpu"} or not settings.enable_acceleration:
        return ProviderChoice(CPU, "cpu")
    return fall_back(
        settings, f"this ONNX Runtime has no {_PROVIDERS[requested.partition(':')[0]][-1]} for {requested}"
    )


def fall_back(settings: GpuSettings, reason: str) -> ProviderChoice:
    """The CPU, with a reason that the heartbeat shows.

    Raises:
        NotSupported: `fallback_to_cpu` is off.
    """
    if not settings.fallback_to_cpu:
        raise NotSupported(
            reason,
            hint="install the extra `gpu` (onnxruntime-gpu) and its driver, use --device cpu,"
            " or set gpu.fallback_to_cpu",
        )
    return ProviderChoice(CPU, "cpu", fallback=reason)


def _choice(provider: str, kind: str, number: int, engine_cache: Path | None) -> ProviderChoice:
    if provider == TENSORRT:
        options = {
            "device_id": str(number),
            "trt_fp16_enable": "1",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(engine_cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(engine_cache),
        }
        return ProviderChoice(provider, f"{kind}:{number}", options)
    if kind in {"cuda", "rocm"}:
        return ProviderChoice(provider, f"{kind}:{number}", {"device_id": str(number)})
    return ProviderChoice(provider, kind, {"device_type": "GPU"} if kind == "xpu" else {})
