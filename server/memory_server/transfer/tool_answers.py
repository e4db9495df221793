"""Unwraps the answer of an MCP tool that was saved as a file, such as that of `read_graph`."""

from __future__ import annotations

from typing import Any, cast

_BLOCK = {"type", "text", "annotations", "_meta"}
_ANSWER = {"content", "structuredContent", "isError", "resultType", "_meta"}


def unwrapped(value: Any) -> tuple[list[str], Any]:
    """Return the JSON texts in a tool's answer, or else its structure. A value that is no answer is returned itself."""
    answer = _object(value)
    if answer.get("jsonrpc") and _object(answer.get("result")):
        answer = _object(answer["result"])
    is_answer = "content" in answer and answer.keys() <= _ANSWER
    texts = _texts(answer["content"] if is_answer else value)
    structure: Any = answer.get("structuredContent")
    return texts, structure if is_answer and structure is not None and not texts else value


def _texts(value: Any) -> list[str]:
    """Return the texts of blocks that all hold JSON, or of one such block or text; nothing of anything else."""
    blocks = cast(list[Any], value) if isinstance(value, list) else [value]
    found = [_text(block) for block in blocks]
    return [text for text in found if text] if all(found) else []


def _text(block: Any) -> str | None:
    fields = _object(block)
    if fields.get("type") == "text" and fields.keys() <= _BLOCK:
        block = fields.get("text")
    return block if isinstance(block, str) and block.lstrip().startswith(("{", "[")) else None


def _object(value: Any) -> dict[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}
