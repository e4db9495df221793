"""Plots the last results: quality against latency, throughput against batch size, latency against size.

`python -m benchmarks.plots` reads the JSON under results/ and writes SVG files there. Needs the extra `bench`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks import results

_SETS = ("locomo", "realtalk", "cranfield", "beam100k")


def quality_against_latency(axes: Any) -> bool:
    """Recall@10 of each search mode on each set, over the median search time."""
    plotted = False
    for name in _SETS:
        report = results.load(f"retrieval-{name}")
        for row in report["modes"] if report else ():
            axes.scatter(row["search_p50_ms"], row["recall_at_10"], label=f"{name}, {row['mode']}")
            plotted = True
    axes.set(xlabel="milliseconds, p50", ylabel="recall@10", title="quality against latency")
    return plotted


def throughput_against_batch(axes: Any) -> bool:
    """Texts per second of the encoder, over the batch size."""
    measured = results.load("batching") or {}
    for engine, rates in measured.items():
        axes.plot([int(size) for size in rates], list(rates.values()), marker="o", label=engine)
    axes.set(xlabel="texts at once", ylabel="texts a second", xscale="log", title="throughput against batch")
    return bool(measured)


def latency_against_size(axes: Any) -> bool:
    """Search times over the number of memories."""
    rows = results.load("scale") or []
    for mode in ("hybrid", "vector", "keyword"):
        for share, line in ((50, "-"), (95, "--")):
            sizes, times = [row["memories"] for row in rows], [row[f"{mode}_p{share}_ms"] for row in rows]
            axes.plot(sizes, times, line, marker="o", label=f"{mode}, p{share}")
    axes.set(xlabel="memories", ylabel="milliseconds", xscale="log", title="latency against size")
    return bool(rows)


def graph_curve(axes: Any) -> bool:
    """Recall@10 of the graph over its time, by the number of candidates."""
    rows = results.load("scale") or []
    for row in rows:
        found = list(row["graph"].values())
        times, recalls = [one["p50_ms"] for one in found], [one["recall"] for one in found]
        axes.plot(times, recalls, marker="o", label=f"{row['memories']} memories")
        for reach, one in row["graph"].items():
            axes.annotate(str(reach), (one["p50_ms"], one["recall"]))
    axes.set(xlabel="milliseconds, p50", ylabel="recall@10", title="the graph by its reach (EF_RUNTIME)")
    return bool(rows)


PLOTS: tuple[Callable[[Any], bool], ...] = (
    quality_against_latency,
    throughput_against_batch,
    latency_against_size,
    graph_curve,
)


def main() -> int:
    """Plot everything for which there are results."""
    if importlib.util.find_spec("matplotlib") is None:
        print("SKIPPED: plots need the extra `bench`")
        return 0
    figures: Any = import_module("matplotlib.figure")
    for plot in PLOTS:
        figure = figures.Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.subplots()
        if plot(axes):
            axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
            figure.savefig(results.FOLDER / f"{plot.__name__}.svg", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
