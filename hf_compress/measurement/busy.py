"""How busy a machine is with something else while this process measures.

Level: state.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
# The kernel counts processor time in hundredths of a second: less than this says nothing.
_SHORTEST_SECONDS = 0.5


class OtherLoad:
    """Counts the processor time that others take while a `with` block runs; several blocks add up.

    Others are all programs but this process, and the host of a virtual machine ("steal").
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._others = 0.0
        self._is_known = True

    def __enter__(self) -> OtherLoad:
        self._start = time.perf_counter(), _taken_by_others()
        return self

    def __exit__(self, *_: object) -> None:
        begin, before = self._start
        after = _taken_by_others()
        self._seconds += time.perf_counter() - begin
        if before is None or after is None:
            self._is_known = False
        else:
            self._others += after - before

    @property
    def cores(self) -> float | None:
        """Cores that others kept busy on average; None below half a second and where the system does not say."""
        if not self._is_known or self._seconds < _SHORTEST_SECONDS:
            return None
        return max(0.0, self._others / self._seconds)


def _taken_by_others() -> float | None:
    """Return the seconds of processor time since the start that were not this process's; None if unknown."""
    try:
        fields = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal guest guest_nice; guests are counted in user and nice already.
    ticks = [int(f) for f in fields[1:9]]
    busy = (sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return busy - own.user - own.system
