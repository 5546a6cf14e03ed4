"""What the control group of a container allows this process: memory and cores."""

import os
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
"""Where a container sees its own control group."""


def memory_limit(root: Path = ROOT) -> int:
    """The bytes that the control group of a container may use; 0 without a limit."""
    for file in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        if file.exists():
            text = file.read_text().strip()
            return int(text) if text.isdigit() else 0
    return 0


def core_limit(root: Path = ROOT) -> int:
    """The cores whose time the control group may use, as by ``docker run --cpus``, rounded up; 0 without a limit."""
    with suppress(OSError, ValueError):  # of version 2: "QUOTA PERIOD", or "max PERIOD"
        quota, period = (root / "cpu.max").read_text().split()
        return 0 if quota == "max" else -(-int(quota) // int(period))
    with suppress(OSError, ValueError):  # of version 1: -1 is no limit
        quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return max(0, -(-int(quota) // int(period)))
    return 0


def available_cores(root: Path = ROOT) -> int:
    """The cores that this process may use, by its affinity and its control group; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, core_limit(root) or allowed))
