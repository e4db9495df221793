"""Runs the benchmarks, each in its own process, and plots the results: `make bench`.

`python -m benchmarks [NAME …]` runs the named ones. A benchmark without its data prints SKIPPED. A failure is reported
at the end and does not stop the others.
"""

from __future__ import annotations

import subprocess
import sys
import time

PARTS: dict[str, tuple[str, ...]] = {
    "retrieval": ("locomo", "realtalk", "cranfield", "beam100k"),
    "embedding": (),
    "batching": (),
    "startup": (),
    "service": (),
    "ingesting": (),
    "sidecars": (),
    "long_content": (),
    "events": (),
    "tasks": (),
    "functions": (),
    "bulk": (),
    "filtered": (),
    "graph": (),
    "footprint": (),
    "scale_constants": (),
    "scale": (),
    "recovery": (),
    "crowd": (),
    "noisy_neighbour": (),
}
"""The benchmarks, each with its command."""


def main() -> int:
    """Run and plot; return 1 if any failed."""
    names = sys.argv[1:] or list(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    failed: list[str] = []
    for name in names:
        began = time.monotonic()
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *PARTS[name]], check=False).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    failed += ["plots"] if subprocess.run([sys.executable, "-m", "benchmarks.plots"], check=False).returncode else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
