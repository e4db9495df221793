"""Embeds with Torch through sentence-transformers: any of its models, on any device of Torch."""

from __future__ import annotations

import importlib
import logging
import time
from statistics import median
from threading import Lock
from typing import Any

import numpy as np

from memory_core.errors import InvalidArgument, NotSupported
from memory_core.records.vectors import Matrix
from memory_core.settings.settings import GpuSettings
from memory_embedder.devices.cpu import available_cores, has_bf16
from memory_embedder.engines.encoder import PooledEncoder, TextKind, Tokens
from memory_embedder.engines.parity import MIN_COSINE, SENTENCES, lowest_cosine
from memory_embedder.engines.providers import fall_back
from memory_embedder.engines.sentence_model import DEFAULT_MAX_TOKENS, prompts_of
from memory_embedder.engines.tokeniser import prepare
from memory_embedder.engines.weights import ModelFolder

_log = logging.getLogger(__name__)
_TRIALS = 3


class TorchEncoder(PooledEncoder):
    """A sentence-transformers model with all its modules: pooling, dense layers, normalisation. See `Encoder`."""

    backend = "torch"

    def __init__(
        self, model: ModelFolder, gpu: GpuSettings, *, threads: int | None = None, exact: bool = False
    ) -> None:
        """Load the model in half precision if that is faster and accurate enough, else in float32.

        `threads` limits the cores of one inference on the CPU, for the whole process. `exact` forbids half precision.

        Raises:
            InvalidArgument: the folder is not a usable model.
            NotSupported: the requested device is not available.
        """
        self._torch: Any = importlib.import_module("torch")
        self.name = model.name
        if threads or self._torch.get_num_threads() > available_cores():
            self._torch.set_num_threads(threads or available_cores())
        self.device, self.fallback = choose_device(gpu, self._torch)
        self._torch_device = self.device.replace("rocm", "cuda")  # Torch names ROCm devices "cuda"
        self._folder = model
        self._open()
        self._lock = Lock()
        self.max_tokens = int(self._model.max_seq_length or DEFAULT_MAX_TOKENS)
        self._prompts = prompts_of(model.folder, model.name)
        tokens = self.tokenise(SENTENCES)
        self.dimension = int(self._pooled(tokens).shape[-1])
        if not exact:
            self._choose_precision(tokens)
        self.provider = f"torch {self._torch.__version__} {self._precision}"

    def tokenise(self, texts: list[str], kind: TextKind = "passage") -> Tokens:
        """Tokenise, and cut each text at `max_tokens`. Lone surrogates count as `?`."""
        if not texts:
            return Tokens(())
        clean = prepare(texts, self._prompts, kind, self.max_tokens)
        with self._lock:  # setting the truncation is not thread-safe
            rows = self._tokenizer(clean, truncation=True, max_length=self.max_tokens, padding=False)["input_ids"]
        return Tokens(tuple(np.array(row, dtype=np.int64) for row in rows))

    def _choose_precision(self, tokens: Tokens) -> None:
        """Keep the first half precision that is close enough to float32 and, on the CPU, faster."""
        exact, seconds = self.infer(tokens), self._seconds(tokens)
        for precision in self._half_precisions():
            self._cast(precision)
            try:
                cosine = lowest_cosine(self.infer(tokens), exact)
            except (InvalidArgument, RuntimeError) as error:
                _log.warning("not using %s: %s", precision, type(error).__name__)
                continue
            if cosine < MIN_COSINE:
                _log.warning("not using %s: its cosine to float32 is %.4f", precision, cosine)
            elif self.device != "cpu" or self._seconds(tokens) < seconds:
                return
        if self._precision != "float32":
            self._open()

    def _open(self) -> None:
        """Load in float32. Also needed after a cast to half precision: casting back does not undo the rounding."""
        self._model = _load(self._folder, self._torch_device)
        self._transformer, *self._rest = list(self._model)
        self._tokenizer: Any = self._model.tokenizer
        self._precision = "float32"

    def _half_precisions(self) -> tuple[str, ...]:
        if self.device == "cpu":
            return ("bfloat16",) if has_bf16() else ()
        return ("float16", "bfloat16")

    def _cast(self, precision: str) -> None:
        if self._precision not in {"float32", precision}:
            self._open()
        self._transformer.to(getattr(self._torch, precision))
        self._precision = precision

    def _seconds(self, tokens: Tokens) -> float:
        times: list[float] = []
        for _ in range(_TRIALS):
            started = time.perf_counter()
            self._pooled(tokens)
            times.append(time.perf_counter() - started)
        return median(times)

    def _pooled(self, tokens: Tokens, *, spare_core: bool = False) -> Matrix:
        torch = self._torch
        ids, mask = (
            torch.from_numpy(array).to(self._torch_device) for array in tokens.padded(self._pad_id, self.max_tokens)
        )
        with torch.inference_mode():
            features: Any = self._transformer({"input_ids": ids, "attention_mask": mask})
            # Pooling sums hundreds of rows, which half precision would round.
            features = {name: _widen(value) for name, value in features.items()}
            for module in self._rest:
                features = module(features)
            return features["sentence_embedding"].float().cpu().numpy()

    @property
    def _pad_id(self) -> int:
        return int(self._tokenizer.pad_token_id or 0)


def choose_device(gpu: GpuSettings, torch: Any) -> tuple[str, str]:
    """The device to use, and why it is not the requested one (empty if it is).

    Raises:
        NotSupported: the requested device is not available and `fallback_to_cpu` is off.
    """
    requested = gpu.preferred_device
    if requested == "cpu" or not gpu.enable_acceleration:
        return "cpu", ""
    found = _devices(torch)
    kind, _, number = requested.partition(":")
    if kind == "auto":
        return next(iter(found), "cpu"), ""
    device = f"{kind}:{int(number or 0)}" if kind in {"cuda", "rocm"} else kind
    if device in found:
        return device, ""
    return "cpu", fall_back(gpu, f"this Torch has no {device}: {', '.join(found) or 'no accelerator'}").fallback


def _devices(torch: Any) -> list[str]:
    """Accelerators, best first."""
    found: list[str] = []
    if torch.cuda.is_available():
        kind = "rocm" if getattr(torch.version, "hip", None) else "cuda"
        found += [f"{kind}:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found.append("xpu")
    return found


def _load(model: ModelFolder, device: str) -> Any:
    try:
        library: Any = importlib.import_module("sentence_transformers")
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
    except ImportError as error:
        raise NotSupported(
            f"the package {error.name} is missing", hint="pip install 'redis-memory-gpu[torch]'"
        ) from error
    try:
        loaded: Any = library.SentenceTransformer(str(model.folder), device=device, local_files_only=True)
    except Exception as error:  # transformers and damaged files raise various errors
        raise InvalidArgument(
            f"sentence-transformers cannot load {model.folder}: {str(error)[:200]}", hint="fetch the model again"
        ) from error
    return loaded.float().eval()


def _widen(value: Any) -> Any:
    return value.float() if getattr(value, "is_floating_point", bool)() else value
