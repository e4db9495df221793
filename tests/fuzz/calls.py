"""Generates calls of all tools from their JSON schemas: valid, nearly valid and hostile."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mcp_types import Tool

from .corpus import DEEP, IDS, INJECTIONS, LONG, NUMBERS, STRINGS, WRONG

Json = dict[str, Any]
_WORDS = ("harbour", "lantern", "launch", "the build breaks", "a note", "zeppelin", "tabs and spaces")
_LABELS = ("red", "green", "island", "Mel", "a,b")
_NAMES = ("mallory", "mike", "victim", "outsider", "nobody", "Not A Name")
_WAITS = ("timeout_seconds", "wait_seconds")
_ID_ARGUMENTS = {
    *("memory_id", "memory_ids", "task_id", "depends_on", "lease_token", "lease_tokens", "grant_id", "cursor"),
    *("offer_id", "since", "idempotency_key"),
}
_REMEMBERED = 200
_MOST_OPERATIONS = 6


@dataclass(slots=True)
class Calls:
    """A seeded generator of calls. Any argument may use `ids`: those of earlier answers and of the victim."""

    tools: Sequence[Tool]
    chance: random.Random
    ids: deque[str] = field(default_factory=lambda: deque(IDS, maxlen=_REMEMBERED))

    def learn(self, answer: Json) -> None:
        """Remember some of the ids and cursors of an answer."""
        for name in ("memory_id", "task_id", "grant_id", "cursor", "next_cursor", "offer_id"):
            if isinstance(value := answer.get(name), str):
                self.ids.append(value)
        tasks = answer.get("tasks")
        for task in tasks if isinstance(tasks, list) else ():
            self.ids.extend(value for name in ("task_id", "lease_token") if (value := task.get(name)))

    def make(self) -> tuple[str, Json]:
        """Generate one call."""
        tool = self.chance.choice(self.tools)
        return tool.name, self._arguments(tool)

    def _arguments(self, tool: Tool) -> Json:
        schema = tool.input_schema
        required = set(schema.get("required", ()))
        arguments: Json = {}
        for name, property_schema in schema.get("properties", {}).items():
            if self.chance.random() < (0.97 if name in required else 0.25):
                arguments[name] = self._argument(tool.name, name, property_schema)
        for name in _WAITS:
            if name in schema["properties"]:
                arguments.setdefault(name, 0)
        if self.chance.random() < 0.02:
            arguments[self.chance.choice(("extra", "__proto__", "agent", "admin", "args", "self", "ctx", ""))] = True
        return arguments

    def _argument(self, tool: str, name: str, schema: Json) -> Any:
        if name == "operations":
            return self._operations()
        value = self._value(name, schema) if self.chance.random() < 0.75 else self._attack(name)
        if name in _WAITS and isinstance(value, int | float) and 0 < value <= 300:
            return 0.01
        if self.chance.random() < 0.03 and not isinstance(value, str):
            return json.dumps(value)
        return value

    def _operations(self) -> Any:
        if self.chance.random() < 0.1:
            return self._attack("operations")
        calls = [self.make() for _ in range(self.chance.randrange(_MOST_OPERATIONS))]
        return [{"op": tool, **arguments} for tool, arguments in calls if tool != "batch_operations"]

    def _attack(self, name: str) -> Any:
        kind = self.chance.random()
        if kind < 0.45:
            return self.chance.choice(STRINGS)
        if kind < 0.6:
            return self.chance.choice(NUMBERS)
        if kind < 0.75:
            return self.chance.choice(WRONG)
        if kind < 0.85:
            return self.chance.choice(list(self.ids))
        if kind < 0.9:
            return [self.chance.choice(STRINGS) for _ in range(self.chance.randrange(4))]
        if kind < 0.93:
            return self.chance.choice(DEEP)
        if kind < 0.95:
            return self.chance.choice(LONG)
        if kind < 0.98:
            return {self.chance.choice(INJECTIONS): self.chance.choice(NUMBERS)}
        return [self.chance.choice(NUMBERS) for _ in range(self.chance.choice((3, 384, 2000)))]

    def _value(self, name: str, schema: Json) -> Any:
        """A value that usually satisfies the schema."""
        if "enum" in schema:
            return self.chance.choice(schema["enum"])
        if "const" in schema:
            return schema["const"]
        if "anyOf" in schema:
            return self._value(name, self.chance.choice(schema["anyOf"]))
        match schema.get("type"):
            case "string":
                return self._text(name)
            case "integer":
                return self._number(schema, whole=True)
            case "number":
                return self._number(schema, whole=False)
            case "boolean":
                return self.chance.random() < 0.5
            case "array":
                items = schema.get("items", {})
                return [self._value(name, items) for _ in range(self.chance.choice((0, 1, 1, 2, 3)))]
            case "object":
                return {"a": self.chance.choice((1, "b", None, [1.5]))}
            case _:
                return self.chance.choice((*_WORDS, 1, None, {"a": 1}))

    def _text(self, name: str) -> str:
        if name in _ID_ARGUMENTS:
            return self.chance.choice(list(self.ids))
        if "agent" in name or name == "transfer_to":
            return self.chance.choice(_NAMES)
        if name in ("context", "tags", "source", "required_capabilities", "capabilities", "task_type"):
            return self.chance.choice(_LABELS)
        return f"{self.chance.choice(_WORDS)} {self.chance.randrange(50)}"

    def _number(self, schema: Json, *, whole: bool) -> Any:
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = min(schema.get("maximum", low + 20), low + 400)
        value = self.chance.choice((low, high, low - 1, high + 1, low + (high - low) * self.chance.random()))
        return int(value) if whole else float(value)
