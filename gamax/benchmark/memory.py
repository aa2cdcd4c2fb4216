"""What the timed calls of a program take on a CPU: the one method that programs of any framework share."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")

CAN_RESET = _CLEAR.exists()
"""Whether the peak can be set back, which Linux alone does."""

PEAK_METHOD = (
    "peak resident memory of the process during the timed calls, less what was resident right before them, plus the "
    "bytes of parameters, optimizer state and inputs"
    if CAN_RESET
    else "peak resident memory of the process since its start, compilation included"
)
"""What `peak_of_calls` returns, in words."""

_resident_at_reset = 0
"""Of this process, as is the peak that the system keeps."""


def resident_bytes() -> int:
    """What the process holds in memory now, without what it has freed; Linux only."""
    _give_back()
    return _status("VmRSS")


def reset_peak() -> None:
    """Begins what `peak_of_calls` measures: after warm-up, which leaves compilers and frameworks as they will stay.

    Where the system cannot (`CAN_RESET`), the peak stays what it was.
    """
    global _resident_at_reset
    if CAN_RESET:
        _resident_at_reset = resident_bytes()
        _CLEAR.write_text("5")


def peak_of_calls(held: int) -> int:
    """The most memory that the calls since `reset_peak` took, as `PEAK_METHOD` says.

    Args:
        held: bytes of parameters, optimizer state and inputs, which were there before the calls.
    """
    return _status("VmHWM") - _resident_at_reset + held if CAN_RESET else _peak_since_start()


def _give_back() -> None:
    """Returns freed memory to the system: what a compiler left free would count as used, or hide what is."""
    gc.collect()
    libc = ctypes.CDLL(None)
    # glibc's; other C libraries give memory back by themselves.
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"no {name} in {_STATUS}")
    return 1024 * int(found[1])


def _peak_since_start() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
