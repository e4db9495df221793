"""Strict check of tool schemas: some clients refuse a whole server for one schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

_KEYWORDS = {
    *("type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems", "enum", "const"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern", "format"),
    *("anyOf", "description", "default", "propertyNames", "minProperties", "maxProperties", "title", "examples"),
}
"""Keywords that clients are known to accept; no `$ref`, which some do not follow."""


def problems_of(tool: dict[str, Any]) -> list[str]:
    """Return the problems in the schemas of a listed tool."""
    found: list[str] = []
    for part in ("inputSchema", "outputSchema"):
        schema = tool.get(part)
        if not isinstance(schema, dict):
            found.append(f"{tool['name']} has no {part}")
            continue
        metaschema = Draft202012Validator(Draft202012Validator.META_SCHEMA)
        found += [f"{tool['name']}.{part}: {error.message}" for error in metaschema.iter_errors(schema)]
        found += [f"{tool['name']}.{part}: {problem}" for problem in _restrictions(part, schema)]
    return found


def _restrictions(part: str, schema: dict[str, Any]) -> Iterator[str]:
    if schema.get("type") != "object":
        yield "is not an object at its top level"
    if part == "inputSchema" and schema.get("additionalProperties") is not False:
        yield "accepts undeclared arguments"
    if part == "inputSchema" and any(key in schema for key in ("anyOf", "oneOf", "allOf")):
        yield "has alternatives at its top level, which model providers refuse"
    for missing in set(schema.get("required", ())) - set(schema.get("properties", {})):
        yield f"requires {missing}, which is not a property"
    yield from _nodes(schema, "")


def _nodes(schema: Any, where: str) -> Iterator[str]:
    if not isinstance(schema, dict):
        return
    for unknown in set(schema) - _KEYWORDS:
        yield f"{where or '.'} has the keyword {unknown}"
    if schema.get("type") == "array" and "items" not in schema:
        yield f"{where} is a list without an item type"
    for name, one in schema.get("properties", {}).items():
        yield from _nodes(one, f"{where}.{name}")
    for key in ("items", "additionalProperties"):
        yield from _nodes(schema.get(key), f"{where}.{key}")
    for one in schema.get("anyOf", ()):
        yield from _nodes(one, f"{where}.anyOf")
