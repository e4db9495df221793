"""Answers of the reports over an agent's own memories."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

from memory_server.contract.answer import Answer


class Text(BaseModel):
    """A memory by its id, with its text or the piece of it that counted."""

    memory_id: str
    content: str


class Alike(BaseModel):
    """Memories that say nearly the same, oldest first, and the greatest cosine among them."""

    cosine: float
    memories: list[Text]


class Cluster(BaseModel):
    """Memories of one subject: how many, the mean cosine to their middle, and those nearest to it."""

    size: int
    closeness: float
    examples: list[Text]


class DuplicatesAnswer(Answer):
    """Groups of near copies, the most alike first; pairs beyond the most that are looked at are counted alone."""

    groups: list[Alike]
    pairs_left_out: int

    def shown(self) -> Iterable[str]:
        return [one.memory_id for group in self.groups for one in group.memories]


class ClustersAnswer(Answer):
    """Subjects, the largest first."""

    clusters: list[Cluster]

    def shown(self) -> Iterable[str]:
        return [one.memory_id for cluster in self.clusters for one in cluster.examples]
