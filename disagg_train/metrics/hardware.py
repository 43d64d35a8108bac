"""The machine that something was measured on."""

import os
import platform
from pathlib import Path

_GIB = 1 << 30


def hardware() -> dict[str, str | int]:
    """Return this machine in a few words and numbers."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(memory / _GIB),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    """Return the name that the CPU's maker gave it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
