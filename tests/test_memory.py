"""What is known of the machine's memory, and what is given back of it."""

from __future__ import annotations

import platform

import pytest

from nftk_jax import memory


def test_available_memory_is_within_the_machine():
    assert 2**20 < memory.available_memory() < 2**50


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a C library that can be asked to give memory back")
def test_memory_is_given_back_only_by_a_process_that_has_grown(monkeypatch):
    held = [100 << 20]
    monkeypatch.setattr(memory, "_resident", lambda statm: held[0])
    monkeypatch.setattr(memory, "_resident_before", [90 << 20])
    memory.give_back()
    assert memory._resident_before == [90 << 20]
    held[0] = 200 << 20
    memory.give_back()
    assert memory._resident_before == [200 << 20]
