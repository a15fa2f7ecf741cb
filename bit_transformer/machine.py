"""What the machine has to give."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# Parameters of `mallopt`, from <malloc.h> of the GNU C library.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 1 << 28  # larger ones are still given back
_LARGEST_BEFORE_2_35 = 1 << 25  # the most that older versions take
_KEPT = 1 << 30


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


def keep_freed_memory() -> bool:
    """Let this process use freed memory again instead of giving it back to the system. Returns whether the C library was told so.

    PyTorch allocates what each operation makes. The GNU C library takes blocks of some megabytes from the system and gives them back
    every time, and the system fills each new page with zeros: a fifth to a third of the time of an update. From now on blocks below 256 MB
    stay with the process, and so does up to a gigabyte at the end of its heap. Settings of the same in the environment have precedence
    (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`, `GLIBC_TUNABLES`). With other C libraries nothing changes.
    """
    set_already = os.environ.keys() & {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    if not sys.platform.startswith("linux") or set_already or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    reused = mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK) or mallopt(_MMAP_THRESHOLD, _LARGEST_BEFORE_2_35)
    return bool(reused) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))


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
