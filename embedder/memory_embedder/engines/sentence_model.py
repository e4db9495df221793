"""Reads the configuration of a sentence-transformers model: pooling, maximum length and prefixes.

All engines except Torch need this, because an ONNX file ends at the token vectors.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from memory_core.errors import InvalidArgument
from memory_embedder.engines.encoder import Pooling

DEFAULT_MAX_TOKENS = 256
"""The length that all-MiniLM-L6-v2 was trained with. Its tokenizer.json says something else."""
_MAX_WINDOW = 8192
_SEARCH_PASSAGES = "Represent this sentence for searching relevant passages: "


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prefixes of queries and passages."""

    query: str = ""
    passage: str = ""


NO_PROMPTS = Prompts()


@dataclass(frozen=True, slots=True)
class SentenceModel:
    """The configuration of a model. `unsupported` names a part that only the Torch backend can compute."""

    max_tokens: int = DEFAULT_MAX_TOKENS
    pooling: Pooling = "mean"
    prompts: Prompts = NO_PROMPTS
    unsupported: str = ""


_FAMILIES: tuple[tuple[str, Prompts], ...] = (
    (r"(multilingual-)?e5-(small|base|large)(-v2)?", Prompts("query: ", "passage: ")),
    (r"nomic-embed-text-v1(\.5)?", Prompts("search_query: ", "search_document: ")),
    (r"bge-(small|base|large)-en(-v1\.5)?|mxbai-embed-large-v1", Prompts(_SEARCH_PASSAGES, "")),
    (r"snowflake-arctic-embed-(xs|s|m|l)(-v1\.5)?", Prompts(_SEARCH_PASSAGES, "")),
)
"""Model families whose folders lack the prefixes that their model cards require."""


def read_sentence_model(folder: Path, name: str) -> SentenceModel:
    """Read the configuration files of a folder. Without any, the model is assumed to be mean-pooled.

    Raises:
        InvalidArgument: a file is not valid JSON.
    """
    pooling_folder, extra_module = _modules(folder)
    mode = _pooling_mode(read_json(folder / pooling_folder / "config.json"))
    unsupported = extra_module or ("" if mode in {"mean", "cls", "max"} else f"{mode} pooling")
    pooling = cast("Pooling", mode) if mode in {"cls", "max"} else "mean"
    return SentenceModel(_window(folder), pooling, prompts_of(folder, name), unsupported)


def prompts_of(folder: Path, name: str) -> Prompts:
    """The prefixes from config_sentence_transformers.json, else of the model's family, else none."""
    found: Any = read_json(folder / "config_sentence_transformers.json").get("prompts")
    configured: dict[str, Any] = found if isinstance(found, dict) else {}
    query = str(configured.get("query") or "")
    passage = next((str(configured[key]) for key in ("passage", "document", "corpus") if configured.get(key)), "")
    if query or passage:
        return Prompts(query, passage)
    short = name.rsplit("/", 1)[-1].lower()
    return next((prompts for pattern, prompts in _FAMILIES if re.fullmatch(pattern, short)), NO_PROMPTS)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Empty if the file is missing.

    Raises:
        InvalidArgument: the file is not valid JSON.
    """
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read {path}: {error}", hint="fetch the model again") from error
    return value if isinstance(value, dict) else {}


def _modules(folder: Path) -> tuple[str, str]:
    """The pooling folder, and the first module that is not a transformer, pooling or normalisation."""
    pooling, extra = "1_Pooling", ""
    path = folder / "modules.json"
    try:
        modules: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        for module in modules:
            kind = str(module["type"]).rsplit(".", 1)[-1]
            if kind == "Pooling":
                pooling = str(module["path"])
            elif kind not in {"Transformer", "Normalize"}:
                extra = extra or f"a {kind} module"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(f"cannot read {path}: {error}", hint="fetch the model again") from error
    return pooling, extra


def _pooling_mode(config: dict[str, Any]) -> str:
    """The pooling mode: a name in new files, one flag per mode in old files."""
    if named := config.get("pooling_mode"):
        return str(named)
    flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    names = [key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens") for key in flags]
    return "+".join(names) or "mean"


def _window(folder: Path) -> int:
    """The maximum length in tokens: as configured, else the number of positions of the model."""
    stated = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    if isinstance(stated, int) and stated > 0:
        return stated
    limits = [
        read_json(folder / "tokenizer_config.json").get("model_max_length"),
        read_json(folder / "config.json").get("max_position_embeddings"),
    ]
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit <= _MAX_WINDOW]
    return min(known, default=DEFAULT_MAX_TOKENS)
