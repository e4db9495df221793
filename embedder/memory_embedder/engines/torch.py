"""Embeds with Torch through sentence-transformers: any of its models, on any device that Torch knows."""

from __future__ import annotations

import importlib
import logging
import time
from statistics import median
from threading import Lock
from typing import Any

import numpy as np

from memory_core.errors import InvalidArgument, NotSupported
from memory_core.settings import GpuSettings
from memory_core.vectors import Matrix
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
    """One sentence-transformers model with all its modules: pooling, dense layers, normalisation; see `Encoder`."""

    backend = "torch"

    def __init__(
        self, model: ModelFolder, gpu: GpuSettings, *, threads: int | None = None, exact: bool = False
    ) -> None:
        """Load the model in half precision where that pays and its vectors are near enough to f32.

        `threads` bounds the cores of one inference on the CPU; Torch has one such bound per process. `exact`
        forbids half precision.

        Raises:
            InvalidArgument: the folder is not a usable model.
            NotSupported: the wanted device is not available.
        """
        self._torch: Any = importlib.import_module("torch")
        self.name = model.name
        if threads or self._torch.get_num_threads() > available_cores():
            self._torch.set_num_threads(threads or available_cores())
        self.device, self.fallback = choose_device(gpu, self._torch)
        self._place = self.device.replace("rocm", "cuda")  # Torch calls ROCm's devices so
        self._folder = model
        self._open()
        self._lock = Lock()
        self.max_tokens = int(self._model.max_seq_length or DEFAULT_MAX_TOKENS)
        self._prompts = prompts_of(model.folder, model.name)
        tokens = self.tokenise(SENTENCES)
        self.dimension = int(self._pooled(tokens).shape[-1])
        if not exact:
            self._settle(tokens)
        self.provider = f"torch {self._torch.__version__} {self._precision}"

    def tokenise(self, texts: list[str], kind: TextKind = "passage") -> Tokens:
        """Tokenise, cutting each text at `max_tokens`; lone surrogates count as `?`."""
        if not texts:
            return Tokens(())
        clean = prepare(texts, self._prompts, kind, self.max_tokens)
        with self._lock:  # setting the truncation is not thread-safe
            rows = self._tokenizer(clean, truncation=True, max_length=self.max_tokens, padding=False)["input_ids"]
        return Tokens(tuple(np.array(row, dtype=np.int64) for row in rows))

    def _settle(self, tokens: Tokens) -> None:
        """Keep the first half precision that is near enough to f32 and, on the CPU, faster."""
        exact, seconds = self.infer(tokens), self._seconds(tokens)
        for precision in self._half_precisions():
            self._cast(precision)
            try:
                cosine = lowest_cosine(self.infer(tokens), exact)
            except (InvalidArgument, RuntimeError) as error:
                _log.warning("%s is not used: %s", precision, type(error).__name__)
                continue
            if cosine < MIN_COSINE:
                _log.warning("%s is not used: its cosine to float32 is %.4f", precision, cosine)
            elif self.device != "cpu" or self._seconds(tokens) < seconds:
                return
        if self._precision != "float32":
            self._open()

    def _open(self) -> None:
        """Load in float32; again after a cast, because casting back would keep what was rounded off."""
        self._model = _load(self._folder, self._place)
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
        ids, mask = (torch.from_numpy(array).to(self._place) for array in tokens.padded(self._pad_id, self.max_tokens))
        with torch.inference_mode():
            features: Any = self._transformer({"input_ids": ids, "attention_mask": mask})
            # Pooling adds up hundreds of rows, which half precision would round.
            features = {name: _widen(value) for name, value in features.items()}
            for module in self._rest:
                features = module(features)
            return features["sentence_embedding"].float().cpu().numpy()

    @property
    def _pad_id(self) -> int:
        return int(self._tokenizer.pad_token_id or 0)


def choose_device(gpu: GpuSettings, torch: Any) -> tuple[str, str]:
    """The device by our name, and why it is not the wanted one.

    Raises:
        NotSupported: the wanted device is not available and `fallback_to_cpu` is off.
    """
    wanted = gpu.preferred_device
    if wanted == "cpu" or not gpu.enable_acceleration:
        return "cpu", ""
    found = _devices(torch)
    kind, _, number = wanted.partition(":")
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


def _load(model: ModelFolder, place: str) -> Any:
    try:
        library: Any = importlib.import_module("sentence_transformers")
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
    except ImportError as error:
        raise NotSupported(
            f"the package {error.name} is missing", hint="pip install 'redis-memory-gpu[torch]'"
        ) from error
    try:
        loaded: Any = library.SentenceTransformer(str(model.folder), device=place, local_files_only=True)
    except Exception as error:  # whatever transformers or a damaged file raises
        raise InvalidArgument(
            f"sentence-transformers cannot load {model.folder}: {str(error)[:200]}", hint="fetch the model again"
        ) from error
    return loaded.float().eval()


def _widen(value: Any) -> Any:
    return value.float() if getattr(value, "is_floating_point", bool)() else value
