"""The effort of an export: seconds by step, and peaks of memory, taken from the reports of progress."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from qcompile.notes import Progress

__all__ = ["Effort"]

#: Where Linux says the peak of this process alone; ``getrusage`` says that of the process which started it, if larger.
_STATUS, _PEAK = Path("/proc/self/status"), "VmHWM:"


class Effort:
    """Takes seconds by step and peaks of memory; called as a ``Progress``, whose calls it passes on.

    The time since the last report counts for the step that reports: the seconds of all steps add up to the time that
    passed, and steps that run beside each other share it.

    Args:
        progress: told of each report in turn.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._lock = threading.Lock()  # steps report from threads
        self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._peaks = {"host": _peak_of_host(), "device": _peak_of_device()}
        self._at: dict[str, str | None] = dict.fromkeys(self._peaks)

    def __call__(self, step: str, done: int, total: int) -> None:
        """Count the time since the last report for a step."""
        with self._lock:
            now = time.perf_counter()
            self._seconds[step] = self._seconds.get(step, 0.0) + now - self._last
            self._last = now
            for place, peak in (("host", _peak_of_host()), ("device", _peak_of_device())):
                if peak is not None and peak > (self._peaks[place] or 0):
                    self._peaks[place], self._at[place] = peak, step
        if self._progress is not None:
            self._progress(step, done, total)

    def figures(self) -> dict[str, Any]:
        """The figures until the last report, as JSON.

        ``seconds`` is their sum and ``steps`` has them by step. ``host`` and ``device`` have the ``bytes`` of the peak
        (of the process, and of what torch allocated on its fullest GPU), and ``at``, the step that reached it, ``null``
        if it stood before the first; each is ``null`` where nothing says it, or no GPU was used.
        """
        with self._lock:
            peaks = {p: None if b is None else {"bytes": b, "at": self._at[p]} for p, b in self._peaks.items()}
            steps = {step: round(seconds, 3) for step, seconds in self._seconds.items()}
            return {"seconds": round(sum(self._seconds.values()), 3), "steps": steps, **peaks}


def _peak_of_host() -> int | None:
    if _STATUS.is_file():
        found = [line.split()[1] for line in _STATUS.read_text().splitlines() if line.startswith(_PEAK)]
        if found:
            return int(found[0]) << 10
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _peak_of_device() -> int | None:
    cuda = sys.modules.get("torch.cuda")  # what was not loaded has allocated nothing
    used = getattr(cuda, "is_initialized", None)  # not there yet while another thread loads it
    if cuda is None or used is None or not used():
        return None
    return max(cuda.max_memory_allocated(device) for device in range(cuda.device_count()))
