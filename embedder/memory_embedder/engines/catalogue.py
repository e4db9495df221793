"""The inference engines by name: which are installed, and how to open one.

Each engine is imported only when it is opened, because Torch and OpenVINO take seconds and hundreds of megabytes.
"""

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


def open_engine(engine: EngineName, options: EncoderOptions) -> OnnxEncoder | OpenVinoEncoder | TorchEncoder:
    """Open one engine.

    Raises:
        NotSupported: packages or the device are missing.
        InvalidArgument, FileAltered: see `weights.find_weights`.
    """
    if missing := next((package for package in _PACKAGES[engine] if find_spec(package) is None), None):
        raise NotSupported(f"the package {missing} is missing", hint=_EXTRAS[engine])
    try:
        if engine == "torch":
            from memory_embedder.engines.torch import TorchEncoder

            return TorchEncoder(find_folder(options.model), options.gpu, threads=options.threads, exact=options.exact)
        weights = find_weights(options.model)
        if engine == "openvino":
            from memory_embedder.engines.openvino import OpenVinoEncoder

            return OpenVinoEncoder(
                weights, options.gpu, threads=options.threads, hint=options.hint, exact=options.exact
            )
        from memory_embedder.engines.onnx import OnnxEncoder

        return OnnxEncoder(weights, options.gpu, threads=options.threads, engine_cache=options.engine_cache)
    except ImportError as error:
        raise NotSupported(f"cannot load {engine}: {error}", hint=_EXTRAS[engine]) from error


def usable_engines(options: EncoderOptions) -> list[EngineName]:
    """The engines whose packages are installed and that have weights for the model.

    Raises:
        FileAltered: see `weights.find_weights`.
    """
    return [engine for engine in _PACKAGES if all(map(find_spec, _PACKAGES[engine])) and _has_weights(engine, options)]


def _has_weights(engine: EngineName, options: EncoderOptions) -> bool:
    try:
        if engine == "torch":
            find_folder(options.model)
        else:
            find_weights(options.model)
    except InvalidArgument:
        return False
    return True
