"""The inference engines by name: which of them are installed, and how to open one."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from memory_core.errors import InvalidArgument, NotSupported
from memory_embedder.engines.encoder_options import EncoderOptions
from memory_embedder.engines.weights import find_folder, find_weights

if TYPE_CHECKING:
    from memory_embedder.engines.onnx import OnnxEncoder
    from memory_embedder.engines.openvino import OpenVinoEncoder
    from memory_embedder.engines.torch import TorchEncoder

EngineName = Literal["onnx", "openvino", "torch"]
_PACKAGES: dict[EngineName, tuple[str, ...]] = {
    "onnx": ("onnxruntime", "tokenizers"),
    "openvino": ("openvino", "tokenizers"),
    "torch": ("torch", "sentence_transformers"),
}
_EXTRAS: dict[EngineName, str] = {
    "onnx": "pip install 'redis-memory-gpu[local]', or [gpu] on a GPU node",
    "openvino": "pip install 'redis-memory-gpu[local]'",
    "torch": "pip install 'redis-memory-gpu[torch]'",
}


def open_engine(engine: EngineName, wanted: EncoderOptions) -> OnnxEncoder | OpenVinoEncoder | TorchEncoder:
    """Open one engine.

    Raises: as `load_encoder`.
    """
    missing = next((package for package in _PACKAGES[engine] if find_spec(package) is None), None)
    if missing:
        raise NotSupported(f"the package {missing} is missing", hint=_EXTRAS[engine])
    try:
        if engine == "torch":
            from memory_embedder.engines.torch import TorchEncoder

            return TorchEncoder(find_folder(wanted.model), wanted.gpu, threads=wanted.threads, exact=wanted.exact)
        weights = find_weights(wanted.model)
        if engine == "openvino":
            from memory_embedder.engines.openvino import OpenVinoEncoder

            return OpenVinoEncoder(weights, wanted.gpu, threads=wanted.threads, hint=wanted.hint, exact=wanted.exact)
        from memory_embedder.engines.onnx import OnnxEncoder

        return OnnxEncoder(weights, wanted.gpu, threads=wanted.threads, engine_cache=wanted.engine_cache)
    except ImportError as error:
        raise NotSupported(f"{engine} cannot be loaded: {error}", hint=_EXTRAS[engine]) from error


def usable_engines(wanted: EncoderOptions) -> list[EngineName]:
    """Engines whose packages are installed and that find weights for the model.

    Raises:
        WeightsAltered: see `weights.find_weights`.
    """
    return [engine for engine in _PACKAGES if all(map(find_spec, _PACKAGES[engine])) and _has_weights(engine, wanted)]


def _has_weights(engine: EngineName, wanted: EncoderOptions) -> bool:
    try:
        if engine == "torch":
            find_folder(wanted.model)
        else:
            find_weights(wanted.model)
    except InvalidArgument:
        return False
    return True
