"""What the machine has to give."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes that this process may still take, of the system, of a container (cgroup v2), of its limit of address space.

    None where none of them says.
    """
    limits = (_system(), _control_group(Path("/sys/fs/cgroup")), _address_space())
    return min((limit for limit in limits if limit is not None), default=None)


def own_memory() -> int | None:
    """Bytes of memory that this process holds; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _system() -> int | None:
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _control_group(folder: Path) -> int | None:
    try:
        most, now = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cached = int(stat["inactive_file"])  # file pages that are given up on demand
    except (OSError, ValueError, KeyError):  # no such group, or "max": no limit
        return None
    return max(0, most - now + cached)


def _address_space() -> int | None:
    try:
        import resource  # not on Windows

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError, ValueError):
        return None
    return None if most == resource.RLIM_INFINITY else max(0, most - pages * os.sysconf("SC_PAGE_SIZE"))
