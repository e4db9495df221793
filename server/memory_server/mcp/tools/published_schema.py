"""Shrinks the schema of a tool's arguments for models, which read it with every request. Validation stays whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_BOUNDS = frozenset({"minimum", "exclusiveMinimum", "maximum"})
_MOST_WORTH_SAYING = 1000
_NULL = {"type": "null"}
_TIME = [{"type": "string"}, {"type": "number"}]


def published(schema: Mapping[str, Any], brief: Collection[str] = ()) -> dict[str, Any]:
    """Return a schema without what a model can do without, required arguments first.

    `brief` names arguments that another tool describes: they come last, and only their types are left.
    """
    arguments: dict[str, dict[str, Any]] = schema.get("properties", {})
    required: list[str] = schema.get("required", [])
    order = sorted(arguments, key=lambda name: (name not in required, name in brief))
    shown = {name: (_type_only if name in brief else _shortened)(arguments[name]) for name in order}
    return {"type": "object", "properties": shown} | {
        key: schema[key] for key in ("required", "additionalProperties") if key in schema
    }


def _shortened(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out bounds that a model hardly meets, and defaults and descriptions that say nothing.

    A time is only text here; a number is accepted too.
    """
    shown = {key: value for key, value in schema.items() if key not in _BOUNDS}
    if schema.get("maximum", _MOST_WORTH_SAYING + 1) <= _MOST_WORTH_SAYING:
        shown["maximum"] = schema["maximum"]
    if [one for one in shown.get("anyOf", ()) if one != _NULL] == _TIME:
        del shown["anyOf"]
        shown["type"] = "string"
    if not shown.get("default", True):
        del shown["default"]
    if shown.get("description", "").endswith("."):
        del shown["description"]  # a sentence describes the type, not the argument
    if shown.get("additionalProperties") is True:
        del shown["additionalProperties"]
    if isinstance(items := shown.get("items"), dict):
        shown["items"] = _shortened(items)
    return shown


def _type_only(schema: Mapping[str, Any]) -> dict[str, Any]:
    shown = _shortened(schema)
    if shown["type"] == "array":
        return {"type": "array", "items": {"type": shown["items"]["type"]}}
    return {key: shown[key] for key in ("type", "enum") if key in shown}
