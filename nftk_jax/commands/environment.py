"""What a run ran on and with: blocks of metrics.json."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

from nftk_jax.commands.files import reason


def version() -> str:
    """Of the installed package."""
    try:
        return importlib.metadata.version("nftk_jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def check_devices() -> None:
    """Find out before any work whether JAX can use the devices that it is to use.

    Raises:
      CommandError: it cannot, such as where JAX_PLATFORMS is cuda on a machine without a GPU.
    """
    import jax

    from nftk_jax.commands.command_line import CommandError  # with the parser, which `nftk --help` does not wait for

    asked = os.environ.get("JAX_PLATFORMS")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter without a word where a plugin finds no device
        if asked:
            raise CommandError(f"JAX_PLATFORMS is {asked}, and JAX finds no such device; unset it") from None
        raise CommandError(f"JAX finds no device ({reason(error)}); set JAX_PLATFORMS=cpu") from None


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
