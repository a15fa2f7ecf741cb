"""What the machine has to give, and how memory is kept."""

import os
import platform
import subprocess
import sys

import pytest

BLOCKS = """
import resource, sys
import torch
from bit_transformer.machine import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
def blocks():
    for _ in range(20):
        torch.empty(10 << 20).fill_(1.0)  # 40 MB: by itself the library never keeps a block of more than 32
blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

LIBRARY, VERSION = platform.libc_ver()
gnu = pytest.mark.skipif(
    LIBRARY != "glibc" or tuple(map(int, VERSION.split("."))) < (2, 35),
    reason="only the GNU C library has these settings, and only newer ones keep blocks of more than 32 MB",
)


def faults(what: str, **environment: str) -> tuple[str, int]:
    """Whether memory is kept, and how many pages the system filled."""
    own = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    made = subprocess.run(
        [sys.executable, "-c", BLOCKS, what],
        env={**plain, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = made.stdout.split()
    return kept, int(count)


@gnu
def test_freed_memory_is_used_again():
    kept, few = faults("keep")
    _, many = faults("leave")
    assert kept == "True"
    assert many > 100  # 200,000, or 400 where pages are huge
    assert few < many / 20


@gnu
def test_settings_of_the_environment_have_precedence():
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"
    assert faults("keep", GLIBC_TUNABLES="glibc.malloc.trim_threshold=1000000")[0] == "False"
    assert faults("keep", MALLOC_ARENA_MAX="2")[0] == "True"
