"""Answers of the reports over an agent's own memories."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

from memory_server.contract.answer import Answer


class Text(BaseModel):
    """A memory's id with its text, or the piece of it that counted."""

    memory_id: str
    content: str


class Alike(BaseModel):
    """Near duplicates, oldest first, and the greatest cosine among them."""

    cosine: float
    memories: list[Text]


class Cluster(BaseModel):
    """Memories of one subject: their number, the mean cosine to their middle, and the nearest ones."""

    size: int
    closeness: float
    examples: list[Text]


class DuplicatesAnswer(Answer):
    """Groups of near duplicates, highest cosine first; pairs beyond the maximum are only counted."""

    groups: list[Alike]
    pairs_left_out: int

    def shown(self) -> Iterable[str]:
        return [one.memory_id for group in self.groups for one in group.memories]


class ClustersAnswer(Answer):
    """Clusters, largest first."""

    clusters: list[Cluster]

    def shown(self) -> Iterable[str]:
        return [one.memory_id for cluster in self.clusters for one in cluster.examples]
