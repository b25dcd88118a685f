"""The machine that measures: cores, descriptors, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

LIBRARIES = (
    "websocket-client",
    "websockets",
    "SQLAlchemy",
    "psycopg-pool",
    "msgspec",
    "picows",
    "aiohttp",
    "uvloop",
)


def pin(role: str) -> None:
    """Keep this process on one core, the server and its client apart, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[0 if role == "server" else 1]})


def raise_descriptor_limit() -> int:
    """Allow as many descriptors as the system lets us; how many those are."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(wanted, 0 if soft == resource.RLIM_INFINITY else soft)


def load() -> float | None:
    """Processes that wanted to run, on average over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def describe() -> dict[str, object]:
    """What a reader has to know to compare figures."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": versions(),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or sys.platform


def versions() -> dict[str, str]:
    """The versions of the libraries that are compared."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
