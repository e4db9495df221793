"""What Redis's clock may have shown at a time, while a run makes it jump. Lifetimes use that clock."""

from __future__ import annotations

import math
import subprocess
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

SETTLING = 2.5
"""Seconds until a jump takes effect: libfaketime reads its file once a second."""
NOTICED = 6.0
"""Seconds until servers notice a jump: they ask Redis for the time every other second."""


@cache
def library() -> Path | None:
    """The path of libfaketime, or None if it is not installed and no clock can jump."""
    found = [path for root in ("/usr/lib", "/usr/local/lib") for path in Path(root).rglob("libfaketimeMT.so.1")]
    return found[0] if found else None


def environment(file: Path) -> dict[str, str]:
    """Environment variables that make a process read its clock offset, in seconds, from a file."""
    return {
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def set_offset(file: Path, seconds: int) -> None:
    """Make the clock of all readers of the file jump. The file is replaced atomically."""
    new = file.with_suffix(".new")
    new.write_text(f"{seconds:+d}\n")
    new.replace(file)


def works() -> bool:
    """Whether libfaketime works on this machine."""
    found = library()
    if found is None:
        return False
    result = subprocess.run(
        ["/bin/date", "+%s"], env={"LD_PRELOAD": str(found), "FAKETIME": "+7200s"}, capture_output=True, check=False
    )
    return result.returncode == 0 and abs(int(result.stdout or 0) - time.time() - 7200) < 5


@dataclass(slots=True)
class RedisClock:
    """Redis's wall clock by the monotonic one: its offsets, and the longest time each may have applied."""

    ahead: float = 0.0
    """How far the real wall clock is ahead of the monotonic one."""
    spans: list[tuple[float, float, float]] = field(default_factory=lambda: [(-math.inf, math.inf, 0.0)])

    def jump(self, now: float, offset: float) -> None:
        """Record a jump that takes effect now or a little later."""
        since, _, last = self.spans[-1]
        self.spans[-1] = (since, now + NOTICED, last)
        self.spans.append((now, math.inf, offset))

    def earliest(self, began: float, ended: float) -> float:
        """The earliest time that the clock may have shown within a period."""
        return self.ahead + min(max(began, since) + offset for since, _, offset in self._over(began, ended))

    def latest(self, ended: float) -> float:
        """The latest time that it may have shown until a time."""
        return self.ahead + max(min(ended, until) + offset for _, until, offset in self._over(-math.inf, ended))

    def _over(self, began: float, ended: float) -> list[tuple[float, float, float]]:
        return [span for span in self.spans if span[0] <= ended and span[1] >= began]
