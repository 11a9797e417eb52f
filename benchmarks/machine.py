"""What a benchmark ran on, in one line above its table."""

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

PACKAGES = ("torch", "numba", "triton", "optuna", "scipy", "transformers")


def description() -> str:
    """Processor or GPU, cores, threads, memory, and the versions of what did the work."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    parts = [
        *devices,
        processor(),
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {gib:.0f} GiB",
        f"Python {platform.python_version()}",
        *(f"{name} {version}" for name, version in versions().items()),
    ]
    return "; ".join(parts)


def processor() -> str:
    """The processor's own name where the system tells it, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
