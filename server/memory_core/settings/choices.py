"""What a connection can choose."""

from __future__ import annotations

from typing import Literal

AnswerForm = Literal["both", "text", "structured"]
ToolSet = Literal["all", "team", "memory"]
