"""For daemons under libfaketime: its 0.9.10 refuses the call that Python's `time.sleep` is made of.

Python loads this by itself when the directory is in PYTHONPATH; nothing else is in it.
"""

import select
import time


def _sleep(seconds: float) -> None:
    select.select([], [], [], seconds)


time.sleep = _sleep  # type: ignore[assignment]
