"""What Redis's clock may have said at a time, while a run makes it jump: lifetimes are by that clock."""

from __future__ import annotations

import math
import subprocess
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

SETTLING = 2.5
"""Seconds within which a jump has happened: libfaketime reads its file once a second."""
NOTICED = 6.0
"""Seconds within which servers have noticed it, which ask Redis for the time every other second."""


@cache
def library() -> Path | None:
    """Find libfaketime; None where there is none, and no clock can jump."""
    found = [path for root in ("/usr/lib", "/usr/local/lib") for path in Path(root).rglob("libfaketimeMT.so.1")]
    return found[0] if found else None


def environment(file: Path) -> dict[str, str]:
    """Have a process take its wall clock's offset from a file, in seconds."""
    return {
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def set_offset(file: Path, seconds: int) -> None:
    """Make the clock of those who read the file jump, at once for each of them: it is never seen half-written."""
    new = file.with_suffix(".new")
    new.write_text(f"{seconds:+d}\n")
    new.replace(file)


def works() -> bool:
    """Whether libfaketime does what it should on this machine."""
    found = library()
    if found is None:
        return False
    said = subprocess.run(
        ["/bin/date", "+%s"], env={"LD_PRELOAD": str(found), "FAKETIME": "+7200s"}, capture_output=True, check=False
    )
    return said.returncode == 0 and abs(int(said.stdout or 0) - time.time() - 7200) < 5


@dataclass(slots=True)
class RedisClock:
    """Redis's wall clock by the monotonic one: the offsets that it had, from when until when at the utmost."""

    ahead: float = 0.0
    """How far the true wall clock is ahead of the monotonic one."""
    spans: list[tuple[float, float, float]] = field(default_factory=lambda: [(-math.inf, math.inf, 0.0)])

    def jump(self, now: float, offset: float) -> None:
        """Note a jump that happens now or a little later."""
        since, _, last = self.spans[-1]
        self.spans[-1] = (since, now + NOTICED, last)
        self.spans.append((now, math.inf, offset))

    def earliest(self, began: float, ended: float) -> float:
        """Give the least that the clock may have said within a time."""
        return self.ahead + min(max(began, since) + offset for since, _, offset in self._over(began, ended))

    def latest(self, ended: float) -> float:
        """Give the most that it may have said until a time."""
        return self.ahead + max(min(ended, until) + offset for _, until, offset in self._over(-math.inf, ended))

    def _over(self, began: float, ended: float) -> list[tuple[float, float, float]]:
        return [span for span in self.spans if span[0] <= ended and span[1] >= began]
