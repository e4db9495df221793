"""The Torch backend. `make test-torch` runs these tests; they are skipped without Torch.

The folder must not be called `torch`, or `import torch` would find it when Torch is not installed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memory_core.errors import InvalidArgument, NotSupported
from memory_core.settings.settings import GpuSettings
from memory_embedder.devices.cpu import has_bf16
from memory_embedder.engines.catalogue import open_engine
from memory_embedder.engines.encoder import encode
from memory_embedder.engines.encoder_options import EncoderOptions
from memory_embedder.engines.parity import MIN_COSINE, MIN_COSINE_INT8, SENTENCES, lowest_cosine
from memory_embedder.engines.torch import TorchEncoder, choose_device
from memory_embedder.engines.weights import DEFAULT_MODEL, ModelFolder, find_folder

CPU_ONLY = GpuSettings(preferred_device="cpu")
OPTIONS = EncoderOptions(DEFAULT_MODEL, CPU_ONLY, exact=True)
WORDS = ["yes", "that"]
"""Known exception: of 300 common words, 7% are below 0.998 with the packaged file."""
ONE_WORD_COSINE = 0.995
pytestmark = pytest.mark.filterwarnings("default")  # deprecations in libraries


def find_model() -> ModelFolder:
    """The folder of the float32 weights. Skips the test without them."""
    reason = "Torch is not installed: make test-torch"
    pytest.importorskip("sentence_transformers", reason=reason)
    try:
        return find_folder(DEFAULT_MODEL)
    except InvalidArgument:
        pytest.skip("the float32 weights are not installed: make test-torch")


@pytest.fixture(scope="module")
def exact() -> TorchEncoder:
    """The float32 reference."""
    return TorchEncoder(find_model(), CPU_ONLY, exact=True)


def test_torch_equals_sentence_transformers(exact: TorchEncoder) -> None:
    from sentence_transformers import SentenceTransformer  # pyright: ignore

    library: Any = SentenceTransformer(str(find_model().folder), device="cpu")
    theirs = library.encode(SENTENCES, normalize_embeddings=True)
    assert lowest_cosine(encode(exact, SENTENCES), theirs) >= 0.99999
    assert (exact.dimension, exact.max_tokens) == (384, library.max_seq_length)


def test_torch_reports_its_properties(exact: TorchEncoder) -> None:
    assert (exact.name, exact.backend, exact.device, exact.fallback) == (DEFAULT_MODEL, "torch", "cpu", "")
    assert exact.provider.endswith("float32")


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_packaged_int8_weights_are_close_to_float32(engine: Any, exact: TorchEncoder) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[engine], reason=f"{engine} is not installed")
    other = open_engine(engine, EncoderOptions(DEFAULT_MODEL, CPU_ONLY))
    texts = [text for text in SENTENCES if text not in WORDS]
    assert lowest_cosine(encode(other, texts), encode(exact, texts)) >= MIN_COSINE_INT8


def test_single_words_show_the_rounding_of_the_packaged_weights(exact: TorchEncoder) -> None:
    pytest.importorskip("onnxruntime", reason="onnx is not installed")
    packaged = open_engine("onnx", EncoderOptions(DEFAULT_MODEL, CPU_ONLY))
    lowest = lowest_cosine(encode(packaged, WORDS), encode(exact, WORDS))
    assert ONE_WORD_COSINE <= lowest < MIN_COSINE_INT8


def test_half_precision_is_close_to_float32(exact: TorchEncoder) -> None:
    chosen = TorchEncoder(find_model(), CPU_ONLY)
    assert has_bf16() or chosen.provider.endswith("float32")
    assert lowest_cosine(encode(chosen, SENTENCES), encode(exact, SENTENCES)) >= MIN_COSINE


def test_inaccurate_half_precision_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from memory_embedder.engines import torch as torch_engine

    monkeypatch.setattr(torch_engine, "has_bf16", lambda: True)  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(torch_engine, "MIN_COSINE", 1.1)
    encoder = TorchEncoder(find_model(), CPU_ONLY)
    assert encoder.provider.endswith("float32")
    exact = TorchEncoder(find_model(), CPU_ONLY, exact=True)
    assert lowest_cosine(encode(encoder, SENTENCES), encode(exact, SENTENCES)) >= 0.99999


def test_unusual_texts_get_a_vector(exact: TorchEncoder) -> None:
    vectors = encode(exact, ["", "\x00", "\ud800", "🎉", "ا" * 3000])
    assert np.isfinite(vectors).all()
    assert exact.tokenise(["boats " * 2000]).lengths == [256]
    assert exact.infer(exact.tokenise([])).shape == (0, 384)


def test_folder_sets_pooling_maximum_length_and_prefixes(tmp_path: Path, exact: TorchEncoder) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(find_model().folder, folder)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32, "do_lower_case": false}')
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "ask: ", "document": "tell: "}}')
    mine = TorchEncoder(find_folder(str(folder)), CPU_ONLY, exact=True)
    assert (mine.name, mine.max_tokens) == ("mine", 32)
    query, passage = (mine.tokenise(["boats"], kind).rows[0] for kind in ("query", "passage"))
    assert query.tolist() == exact.tokenise(["ask: boats"]).rows[0].tolist()
    assert passage.tolist() == exact.tokenise(["tell: boats"]).rows[0].tolist()
    means = encode(exact, [f"tell: {text}" for text in SENTENCES])
    assert lowest_cosine(encode(mine, SENTENCES), means) < 0.99


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    find_model()
    with pytest.raises(InvalidArgument, match="has no Torch model"):
        find_folder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InvalidArgument, match="cannot load"):
        TorchEncoder(find_folder(str(tmp_path)), CPU_ONLY)


def _torch(*, cuda: int = 0, hip: str | None = None, mps: bool = False, xpu: bool = False) -> Any:
    return SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: cuda > 0, device_count=lambda: cuda),
        version=SimpleNamespace(hip=hip),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
        xpu=SimpleNamespace(is_available=lambda: xpu),
    )


@pytest.mark.parametrize(
    ("wanted", "torch", "device"),
    [
        ("auto", _torch(), "cpu"),
        ("auto", _torch(cuda=2), "cuda:0"),
        ("cuda:1", _torch(cuda=2), "cuda:1"),
        ("auto", _torch(cuda=1, hip="6.4"), "rocm:0"),
        ("rocm", _torch(cuda=1, hip="6.4"), "rocm:0"),
        ("auto", _torch(mps=True), "mps"),
        ("xpu", _torch(xpu=True), "xpu"),
        ("cpu", _torch(cuda=1), "cpu"),
    ],
)
def test_device_is_chosen_from_those_of_torch(wanted: str, torch: Any, device: str) -> None:
    assert choose_device(GpuSettings(preferred_device=wanted), torch) == (device, "")


def test_missing_device_falls_back_to_the_cpu_with_a_reason() -> None:
    device, reason = choose_device(GpuSettings(preferred_device="cuda:3"), _torch(cuda=2))
    assert device == "cpu"
    assert reason == "this Torch has no cuda:3: cuda:0, cuda:1"
    with pytest.raises(NotSupported, match="no accelerator"):
        choose_device(GpuSettings(preferred_device="cuda", fallback_to_cpu=False), _torch())
