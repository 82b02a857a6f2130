"""What a run ran on and with: blocks of metrics.json."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys


def version() -> str:
    """Of the installed package."""
    try:
        return importlib.metadata.version("nftk_jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, object]:
    """The block `environment` of metrics.json."""
    import jax

    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
    }


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
