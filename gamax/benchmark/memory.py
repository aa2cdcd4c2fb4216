"""Resident memory of this process, and its peak: the one method that programs of any framework share on a CPU."""

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
    "peak resident memory of the process during the timed calls, less what was resident before the network was built"
    if CAN_RESET
    else "peak resident memory of the process since its start, less what was resident before the network was built"
)
"""What `peak_bytes() - resident_bytes()` means, the second taken before the network is built, in words."""


def resident_bytes() -> int:
    """What the process holds in memory now, without what it has freed; not on Linux, the most that it ever held."""
    if not CAN_RESET:
        return _peak_since_start()
    _give_back()
    return _status("VmRSS")


def reset_peak() -> None:
    """Lets the peak start anew from `resident_bytes()`; where the system cannot (`CAN_RESET`), it stays what it was."""
    if CAN_RESET:
        _give_back()
        _CLEAR.write_text("5")


def peak_bytes() -> int:
    """The most that the process held in memory at once since `reset_peak`; not on Linux, since its start."""
    return _status("VmHWM") if CAN_RESET else _peak_since_start()


def _give_back() -> None:
    """Returns freed memory to the system: what a compiler left free would count as used by the network."""
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
