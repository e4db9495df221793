"""Answers of the reports over an agent's own memories."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from pydantic import BaseModel

from memory_server.contract.answer import Answer
from memory_server.contract.untrusted_text import NOTE, counted, decimal, framed


class Text(BaseModel):
    """A memory's id with its text, or the piece of it that counted."""

    memory_id: str
    content: str

    def lines(self) -> list[str]:
        return [f"[{self.memory_id}]", *framed(self.content)]


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

    def lines(self) -> Iterable[str]:
        left = (
            f" {counted(self.pairs_left_out, 'more pair is', 'more pairs are')} left out."
            if self.pairs_left_out
            else ""
        )
        yield f"{counted(len(self.groups), 'group')} of near duplicates.{left} {NOTE}"
        for group in self.groups:
            yield f"{len(group.memories)} alike, similarity {decimal(group.cosine)}:"
            yield from chain.from_iterable(one.lines() for one in group.memories)


class ClustersAnswer(Answer):
    """Clusters, largest first."""

    clusters: list[Cluster]

    def shown(self) -> Iterable[str]:
        return [one.memory_id for cluster in self.clusters for one in cluster.examples]

    def lines(self) -> Iterable[str]:
        yield f"{counted(len(self.clusters), 'cluster')}. {NOTE}"
        for cluster in self.clusters:
            yield f"{counted(cluster.size, 'memory')}, closeness {decimal(cluster.closeness)}, such as:"
            yield from chain.from_iterable(one.lines() for one in cluster.examples)
