"""Embeds with OpenVINO: on CPUs the fastest engine that reads the same ONNX file."""

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
from memory_core.settings import GpuSettings
from memory_core.vectors import Matrix
from memory_embedder.devices.cpu import available_cores, has_bf16
from memory_embedder.engines.encoder import PooledEncoder, TextKind, TokenIds, Tokens, pool, unit_rows
from memory_embedder.engines.encoder_options import Hint
from memory_embedder.engines.openvino_graph import has_int8_weights, unpack_weights
from memory_embedder.engines.parity import MIN_COSINE, MIN_COSINE_INT8, SENTENCES, lowest_cosine
from memory_embedder.engines.providers import fall_back
from memory_embedder.engines.tokeniser import TextTokeniser
from memory_embedder.engines.weights import Weights, choose_output

_log = logging.getLogger(__name__)
_KEPT_KERNELS = {"CPU_RUNTIME_CACHE_CAPACITY": 200}
"""Of the usual 5,000, each made for one shape of a layer's input, a sidecar would grow by a gigabyte."""


@dataclass(frozen=True, slots=True)
class CompilePlan:
    """A way to compute: device, precision, whether int8 weights are unpacked first, and how near to f32 it must be."""

    device: str
    precision: str
    unpacked: bool
    least_cosine: float

    @property
    def label(self) -> str:
        """As `provider` shows it."""
        return f"OpenVINO {self.device} {self.precision if self.unpacked else 'int8'}"


class OpenVinoEncoder(PooledEncoder):
    """One ONNX model, compiled by OpenVINO, and its tokenizer; see `Encoder`."""

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
        """Load the model in the fastest precision whose vectors are near enough to f32 on fixed sentences.

        `threads` bounds the cores of one inference. With `hint` "throughput" every core works on its own part of
        a batch, which wastes least; with "latency" all work on the same one. `exact` forbids all but f32.

        Raises:
            InvalidArgument: the files are not a usable model.
            NotSupported: the wanted device is not available, or the model ends in what only Torch computes.
        """
        self.name = weights.name
        self.max_tokens = weights.max_tokens
        self._weights = weights
        self._gpu = gpu
        self._tokeniser = TextTokeniser(weights)
        self._config = {"PERFORMANCE_HINT": hint.upper()}
        self._cores = threads or available_cores()
        self._core: Any = importlib.import_module("openvino").Core()
        self._lock = Lock()
        self.device, self.fallback = _device(gpu, self._core.available_devices)
        plan = self._settle(() if exact else self._plans())
        self.provider = f"{plan.label}, {hint}"

    def tokenise(self, texts: list[str], kind: TextKind = "passage") -> Tokens:
        """Tokenise, cutting each text at `max_tokens`; lone surrogates count as `?`."""
        return self._tokeniser.tokenise(texts, kind)

    def _settle(self, plans: Sequence[CompilePlan]) -> CompilePlan:
        """Compile plan after plan until one is near enough to f32, which is the last one and needs no proof."""
        tokens = self.tokenise(SENTENCES)
        exact = CompilePlan("CPU", "f32", True, 1.0)
        self._compile(exact)
        reference = self._pooled(tokens)
        self.dimension = int(reference.shape[-1])
        reference = unit_rows(reference, self.dimension)
        for plan in plans:
            try:
                self._compile(plan)
                cosine = lowest_cosine(unit_rows(self._pooled(tokens), self.dimension), reference)
            except (InvalidArgument, RuntimeError) as error:  # OpenVINO raises RuntimeError alone
                problem = type(error).__name__
            else:
                if cosine >= plan.least_cosine:
                    return plan
                problem = f"its cosine to f32 is {cosine:.4f}"
            _log.warning("%s is not used: %s", plan.label, problem)
            if plan.device == "GPU":
                self.device, self.fallback = (
                    "cpu",
                    fall_back(self._gpu, f"{plan.label} is not used: {problem}").fallback,
                )
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
            # Pinned threads would wait for cores on which Redis or the tokenizer works.
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
                    ids, mask = tokens.pick(positions).padded(self._tokeniser.pad_id, self.max_tokens)
                    request.start_async(self._feed(ids, mask))
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
        hidden = request.get_output_tensor(self._output).data
        return hidden if hidden.ndim == 2 else pool(hidden, mask, self._weights.pooling)

    def _feed(self, ids: TokenIds, mask: TokenIds) -> dict[str, TokenIds]:
        feed = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(ids)
        return feed


def _parts(lengths: list[int], count: int) -> list[list[int]]:
    """Positions in at most `count` parts of about as many tokens each, sorted by length so that little is padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    share = sum(lengths) / count
    parts: list[list[int]] = [[] for _ in range(count)]
    done = 0
    for position in order:
        parts[min(int(done / share), count - 1)].append(position)
        done += lengths[position]
    return [part for part in parts if part]


def _device(gpu: GpuSettings, devices: Sequence[str]) -> tuple[str, str]:
    """The device's name, and why it is not the wanted one.

    Raises:
        NotSupported: the wanted device is not available and `fallback_to_cpu` is off.
    """
    wanted = gpu.preferred_device
    if wanted == "cpu" or not gpu.enable_acceleration:
        return "cpu", ""
    has_gpu = any(device.partition(".")[0] == "GPU" for device in devices)
    if has_gpu and wanted in {"auto", "xpu"}:
        return "xpu", ""
    return "cpu", "" if wanted == "auto" else fall_back(gpu, f"OpenVINO has no device for {wanted}").fallback
