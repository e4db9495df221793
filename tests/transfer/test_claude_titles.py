"""Contexts of imported Claude conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memory_server.transfer.foreign import Foreign
from memory_server.transfer.formats.claude import FORMAT
from memory_server.transfer.source import Source


@pytest.mark.parametrize(
    ("conversation", "context"),
    [
        ({"name": "Boats"}, "Boats"),
        ({"name": "Boats", "uuid": "0123456789"}, "Boats (01234567)"),
        ({"name": " \n "}, "untitled"),
        ({"name": None, "uuid": "0123456789"}, "untitled (01234567)"),
    ],
)
def test_context_is_the_title_and_the_start_of_the_id(
    tmp_path: Path, conversation: dict[str, Any], context: str
) -> None:
    attachment = {"file_name": "a.txt", "extracted_content": "Oars."}
    message = {"uuid": "m", "sender": "human", "text": "Hello.", "attachments": [attachment]}
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([{**conversation, "chat_messages": [message]}]))
    memories = [one for one in FORMAT.read(Source(path)) if isinstance(one, Foreign)]
    assert [one.context for one in memories] == [context, context]
