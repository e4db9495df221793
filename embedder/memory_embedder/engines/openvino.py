"""Embeds with OpenVINO, the fastest engine for an ONNX file on CPUs."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from memory_core.errors import InvalidArgument
from memory_core.records.vectors import Matrix, normalise
from memory_core.settings.settings import GpuSettings
from memory_embedder.devices.cpu import available_cores, has_bf16
from memory_embedder.engines.encoder import TokenIds, Tokens
from memory_embedder.engines.encoder_options import Hint
from memory_embedder.engines.onnx_file import OnnxFileEncoder
from memory_embedder.engines.openvino_graph import has_int8_weights, unpack_weights
from memory_embedder.engines.parity import MIN_COSINE, MIN_COSINE_INT8, SENTENCES, lowest_cosine
from memory_embedder.engines.providers import fall_back
from memory_embedder.engines.weights import Weights, choose_output

_log = logging.getLogger(__name__)
_KEPT_KERNELS = {"CPU_RUNTIME_CACHE_CAPACITY": 200}
"""Limits the cache of compiled kernels (default 5,000, one per input shape), which would grow by a gigabyte."""


@dataclass(frozen=True, slots=True)
class CompilePlan:
    """Device and precision, whether int8 weights are unpacked first, and the lowest accepted cosine to f32."""

    device: str
    precision: str
    unpacked: bool
    min_cosine: float

    @property
    def label(self) -> str:
        """The text that `provider` shows."""
        return f"OpenVINO {self.device} {self.precision if self.unpacked else 'int8'}"


class OpenVinoEncoder(OnnxFileEncoder):
    """An ONNX model compiled by OpenVINO. See `Encoder`."""

    backend = "openvino"

    def __init__(
        self,
        weights: Weights,
        gpu: GpuSettings,
        *,
        threads: int | None = None,
        hint: Hint = "throughput",
        exact: bool = False,
    ) -> None:
        """Load the model in the fastest precision that is accurate enough on fixed sentences.

        `threads` limits the cores of one inference. With `hint` "throughput" each core computes its own part of a
        batch, which is most efficient; with "latency" all cores work on the same part. `exact` allows only f32.

        Raises:
            InvalidArgument: the files are not a usable model.
            NotSupported: the requested device is not available, or the model has a part that only Torch computes.
        """
        super().__init__(weights)
        self._gpu = gpu
        self._config = {"PERFORMANCE_HINT": hint.upper()}
        self._cores = threads or available_cores()
        self._core: Any = importlib.import_module("openvino").Core()
        self._lock = Lock()
        self.device, self.fallback = _device(gpu, self._core.available_devices)
        plan = self._choose_plan(() if exact else self._plans())
        self.provider = f"{plan.label}, {hint}"

    def _choose_plan(self, plans: Sequence[CompilePlan]) -> CompilePlan:
        """Compile the first plan whose vectors are close enough to f32. Without one, use f32."""
        tokens = self.tokenise(SENTENCES)
        exact = CompilePlan("CPU", "f32", True, 1.0)
        self._compile(exact)
        reference = self._pooled(tokens)
        self.dimension = int(reference.shape[-1])
        reference = normalise(reference, self.dimension)
        for plan in plans:
            try:
                self._compile(plan)
                cosine = lowest_cosine(normalise(self._pooled(tokens), self.dimension), reference)
            except (InvalidArgument, RuntimeError) as error:  # OpenVINO raises only RuntimeError
                problem = type(error).__name__
            else:
                if cosine >= plan.min_cosine:
                    return plan
                problem = f"its cosine to f32 is {cosine:.4f}"
            _log.warning("not using %s: %s", plan.label, problem)
            if plan.device == "GPU":
                self.device = "cpu"
                self.fallback = fall_back(self._gpu, f"{plan.label} is not used: {problem}").fallback
        if plans:
            self._compile(exact)
        return exact

    def _plans(self) -> list[CompilePlan]:
        if self.device == "xpu":
            return [CompilePlan("GPU", "f16", True, MIN_COSINE), *self._cpu_plans()]
        return self._cpu_plans()

    def _cpu_plans(self) -> list[CompilePlan]:
        plans: list[CompilePlan] = []
        if has_bf16() and "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            plans.append(CompilePlan("CPU", "bf16", True, MIN_COSINE))
        if has_int8_weights(self._read()):
            plans.append(CompilePlan("CPU", "f32", False, MIN_COSINE_INT8))
        return plans

    def _read(self) -> Any:
        try:
            return self._core.read_model(str(self._weights.model))
        except RuntimeError as error:
            raise InvalidArgument(
                f"OpenVINO cannot load {self._weights.model}: {str(error)[:200]}",
                hint="reinstall or fetch the model again",
            ) from error

    def _compile(self, plan: CompilePlan) -> None:
        model = self._read()
        if plan.unpacked:
            unpack_weights(model)
        config: dict[str, Any] = {**self._config, "INFERENCE_PRECISION_HINT": plan.precision}
        if plan.device == "CPU":
            # Pinned threads would wait for cores that Redis or the tokenizer uses.
            config |= {"INFERENCE_NUM_THREADS": self._cores, "ENABLE_CPU_PINNING": False, **_KEPT_KERNELS}
        compiled = self._core.compile_model(model, plan.device, config)
        count = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._requests = [compiled.create_infer_request() for _ in range(max(1, min(count, self._cores)))]
        self._inputs = {name for port in compiled.inputs for name in port.names}
        outputs = [port.any_name for port in compiled.outputs]
        self._output = outputs.index(choose_output(self._weights, outputs))

    def _pooled(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        parts = _parts(tokens.lengths, max(len(self._requests) - spare_core, 1))
        with self._lock:
            started: list[tuple[Any, TokenIds]] = []
            try:
                for request, positions in zip(self._requests, parts, strict=False):
                    feed, mask = self._feed(tokens.pick(positions))
                    request.start_async(feed)
                    started.append((request, mask))
                rows = np.concatenate([self._result(request, mask) for request, mask in started])
            finally:
                for request, _ in started:
                    with contextlib.suppress(RuntimeError):
                        request.wait()
        vectors = np.empty_like(rows)
        vectors[[position for part in parts for position in part]] = rows
        return vectors

    def _result(self, request: Any, mask: TokenIds) -> Matrix:
        request.wait()
        return self._pool(request.get_output_tensor(self._output).data, mask)


def _parts(lengths: list[int], count: int) -> list[list[int]]:
    """Divide texts, sorted by length to keep padding small, into at most `count` parts with about equal tokens."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    share = sum(lengths) / count
    parts: list[list[int]] = [[] for _ in range(count)]
    done = 0
    for position in order:
        parts[min(int(done / share), count - 1)].append(position)
        done += lengths[position]
    return [part for part in parts if part]


def _device(gpu: GpuSettings, devices: Sequence[str]) -> tuple[str, str]:
    """The device to use, and why it is not the requested one (empty if it is).

    Raises:
        NotSupported: the requested device is not available and `fallback_to_cpu` is off.
    """
    requested = gpu.preferred_device
    if requested == "cpu" or not gpu.enable_acceleration:
        return "cpu", ""
    has_gpu = any(device.partition(".")[0] == "GPU" for device in devices)
    if has_gpu and requested in {"auto", "xpu"}:
        return "xpu", ""
    return "cpu", "" if requested == "auto" else fall_back(gpu, f"OpenVINO has no device for {requested}").fallback
