"""Chooses where ONNX Runtime computes, and says so when it is not what was wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memory_core.errors import NotSupported
from memory_core.settings import GpuSettings

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
    """A provider with its options, the device it stands for, and why it is not the wanted one."""

    provider: str
    device: str
    options: dict[str, str] = field(default_factory=dict)
    fallback: str = ""


def candidates(
    settings: GpuSettings, available: Sequence[str], engine_cache: Path | None = None
) -> list[ProviderChoice]:
    """The accelerators to try, best first, among the providers that this ONNX Runtime was built with.

    TensorRT builds an engine for every new range of shapes, which takes minutes: it is tried only with an
    `engine_cache` folder, where the engines outlast the process.
    """
    wanted = settings.preferred_device
    if wanted == "cpu" or not settings.enable_acceleration:
        return []
    kind, _, number = wanted.partition(":")
    kinds = tuple(_PROVIDERS) if kind == "auto" else (kind,)
    return [
        _choice(provider, kind, int(number or 0), engine_cache)
        for kind in kinds
        for provider in _PROVIDERS[kind]
        if provider in available and (provider != TENSORRT or engine_cache)
    ]


def choose(settings: GpuSettings, available: Sequence[str], engine_cache: Path | None = None) -> ProviderChoice:
    """The first of `candidates`, else the CPU.

    Raises:
        NotSupported: the wanted device is not available and `fallback_to_cpu` is off.
    """
    found = candidates(settings, available, engine_cache)
    return found[0] if found else without_accelerator(settings)


def without_accelerator(settings: GpuSettings) -> ProviderChoice:
    """The CPU, with a reason if an accelerator was asked for that this ONNX Runtime was not built with.

    Raises:
        NotSupported: one was asked for and `fallback_to_cpu` is off.
    """
    wanted = settings.preferred_device
    if wanted in {"auto", "cpu"} or not settings.enable_acceleration:
        return ProviderChoice(CPU, "cpu")
    return fall_back(settings, f"this ONNX Runtime has no {_PROVIDERS[wanted.partition(':')[0]][-1]} for {wanted}")


def fall_back(settings: GpuSettings, reason: str) -> ProviderChoice:
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
