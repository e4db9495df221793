"""What of a memory is embedded: its source says who speaks, and short turns mean little without that."""

from __future__ import annotations


def embedding_text(content: str, source: str | None) -> str:
    """Put the source before the content, as transcripts do."""
    return f"{source}: {content}" if source else content
