"""The contents that a run stores. Every version of every memory is unique."""

from __future__ import annotations

import random

from chaos.history import Json

_WORDS = (
    "lantern harbour ledger copper orchard thunder velvet candle ribbon marble gravel meadow violet winter saddle "
    "compiler router parser kernel socket buffer schema index vector shard replica invoice tariff audit budget merger "
    "glacier canyon lagoon tundra monsoon comet nebula quasar eclipse pollen antler falcon otter beetle willow cedar"
).split()
_ODD = (
    "naïve café",
    "東京の会議",
    "Straße",
    "🫨 done",
    "line\nbreak",
    "tab\tstop",
    "e\u0301 apart",
    "  padded  ",
    "'\"\\|{}",
)
LIFETIMES = {"critical": None, "archive": None, "high": 90 * 86_400, "medium": 30 * 86_400, "low": 7 * 86_400}
"""Default lifetime per priority, in seconds."""


def mark_of(agent: str, number: int, version: int) -> str:
    """The word that identifies one version of one memory."""
    return f"mark{agent}{number}v{version}"


def memory_of(mark: str) -> str:
    """The part of a mark that all versions of a memory share."""
    return mark.rpartition("v")[0]


def version(mark: str, chance: random.Random) -> Json:
    """The fields of one version. Each of them contains its mark."""
    sentences = 1 if chance.random() < 0.99 else chance.randint(60, 120)
    lines = [" ".join(chance.choices(_WORDS, k=8)) for _ in range(sentences)]
    odd = chance.choice(_ODD) if chance.random() < 0.2 else ""
    return {"content": f"{mark} {'. '.join(lines)}{odd}", "tags": [mark], "metadata": {"mark": mark}}


def is_consistent(memory: Json) -> bool:
    """Whether all fields of a memory are of one version."""
    mark = memory["content"].partition(" ")[0]
    return memory.get("tags") == [mark] and memory.get("metadata") == {"mark": mark}
