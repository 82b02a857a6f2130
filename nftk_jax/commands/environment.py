"""Whether JAX can use the devices that it is to use."""

from __future__ import annotations

import os

from nftk_jax.commands.files import reason


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
