"""Checkpoints: what is read back, what is refused in one line, and that a file appears whole."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax.commands.checkpoint import Checkpoint, CheckpointError

SETTINGS = {"depth": 3, "ridge": "auto"}


def started(tmp_path, **arrays):
    checkpoint = Checkpoint(tmp_path / "out", SETTINGS, resume=False, seconds=0)
    checkpoint["state"] = arrays
    return checkpoint


def test_arrays_are_read_back_bit_for_bit(tmp_path, rng):
    a = rng.normal(size=(3, 2))
    checkpoint = started(tmp_path, a=a, count=np.asarray(3))
    assert [path.name for path in tmp_path.iterdir()] == [".out-checkpoint"]
    again = Checkpoint(tmp_path / "out", SETTINGS, resume=True).get("state")
    assert again is not None
    np.testing.assert_array_equal(again["a"], a)
    assert again["count"] == 3
    assert Checkpoint(tmp_path / "out", SETTINGS, resume=True).get("other") is None
    checkpoint.remove()
    assert not list(tmp_path.iterdir())


def test_a_new_run_replaces_the_checkpoint_of_the_one_before(tmp_path):
    started(tmp_path, a=np.ones(1))
    Checkpoint(tmp_path / "out", SETTINGS, resume=False, seconds=0)["other"] = {"b": np.ones(1)}
    resumed = Checkpoint(tmp_path / "out", SETTINGS, resume=True)
    assert resumed.get("state") is None
    assert resumed.get("other") is not None


def test_writing_waits_until_flushed_and_only_the_first_process_writes(tmp_path):
    reader = Checkpoint(tmp_path / "out", SETTINGS, resume=False, writes=False, seconds=0)
    reader["state"] = {"a": np.ones(1)}
    reader.flush()
    assert not list(tmp_path.iterdir())
    slow = Checkpoint(tmp_path / "out", SETTINGS, resume=False, seconds=1e9)
    slow["state"] = {"a": np.zeros(1)}
    slow["state"] = {"a": np.ones(1)}
    stored = Checkpoint(tmp_path / "out", SETTINGS, resume=True)
    assert stored.get("state")["a"] == 0
    slow.flush()
    assert stored.get("state")["a"] == 1


def test_it_is_a_mapping_of_what_this_run_and_the_interrupted_one_saved(tmp_path):
    fresh = Checkpoint(tmp_path / "out", SETTINGS, resume=False, seconds=0)
    assert (dict(fresh), fresh.exists, fresh.get("state")) == ({}, False, None)
    fresh["state"] = {"a": np.ones(2)}
    assert (list(fresh), fresh.exists, fresh["state"]["a"].sum()) == (["state"], True, 2)
    anew = Checkpoint(tmp_path / "out", SETTINGS, resume=False, seconds=1e9)
    assert list(anew) == []
    resumed = Checkpoint(tmp_path / "out", SETTINGS, resume=True, seconds=1e9)
    resumed["more"] = {"b": np.zeros(1)}
    resumed["more"] = {"b": np.ones(1)}  # not written yet
    assert list(resumed) == ["more", "state"]
    assert resumed["more"]["b"] == 1
    del resumed["state"]
    assert list(resumed) == ["more"]
    for absent in ("state", "none"):
        with pytest.raises(KeyError, match=absent):
            resumed[absent]
        with pytest.raises(KeyError, match=absent):
            del resumed[absent]


def test_what_an_interrupted_run_left_is_not_replaced_unless_that_is_asked_for(tmp_path):
    started(tmp_path, a=np.ones(1))
    with pytest.raises(CheckpointError, match=r"left .*: add `resume` to go on from it, or `overwrite` to st"):
        Checkpoint(tmp_path / "out", SETTINGS, resume=False, replace=False)
    Checkpoint(tmp_path / "out", SETTINGS, resume=False, replace=False, writes=False)  # its first process has asked
    assert Checkpoint(tmp_path / "out", SETTINGS, resume=True)["state"]["a"] == 1


def test_every_damage_to_a_file_is_noticed(tmp_path, rng):
    started(tmp_path, a=rng.normal(size=(3, 2)), b=np.arange(4), c=np.asarray(7))
    file = tmp_path / ".out-checkpoint" / "state.npz"
    whole = file.read_bytes()
    assert Checkpoint(tmp_path / "out", SETTINGS, resume=True)["state"]["c"] == 7
    damaged = [whole[:-n] + bytes(n) for n in range(1, len(whole))]  # a tail of zeros, as after a power failure
    damaged += [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in range(len(whole))]
    damaged += [whole[:n] for n in range(0, len(whole), 7)]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged"):
            Checkpoint(tmp_path / "out", SETTINGS, resume=True)["state"]


def cut(directory):
    file = directory / "state.npz"
    file.write_bytes(file.read_bytes()[:40])
    return SETTINGS


def remove(directory):
    for file in directory.iterdir():
        file.unlink()
    return SETTINGS


CASES = {
    "other settings": (lambda d: {**SETTINGS, "depth": 4}, "depth was 3, is 4"),
    "a damaged file": (cut, "is damaged"),
    "no settings": (remove, "nothing to resume"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_resumed_is_refused_in_one_line(case, tmp_path):
    change, message = CASES[case]
    started(tmp_path, a=np.ones(5))
    settings = change(tmp_path / ".out-checkpoint")
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint(tmp_path / "out", settings, resume=True).get("state")
    assert "\n" not in str(caught.value)
    assert "`resume`" in str(caught.value)
