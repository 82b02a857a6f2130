"""Checkpoints: what is read back, what is refused in one line, and that a file appears whole."""

from __future__ import annotations

import numpy as np
import pytest

from nftk_jax.journal import Checkpoint, CheckpointError, flatten_weights, restore_weights
from nftk_jax.mkl.problem import SearchProblem
from nftk_jax.mkl.search import learn_weights
from nftk_jax.settings import SearchSettings

SETTINGS = {"depth": 3, "ridge": "auto"}


def started(tmp_path, **arrays):
    checkpoint = Checkpoint(tmp_path / "out", SETTINGS, resume=False, seconds=0)
    checkpoint.save("state", arrays)
    return checkpoint


def test_arrays_are_read_back_bit_for_bit(tmp_path, rng):
    a = rng.normal(size=(3, 2))
    checkpoint = started(tmp_path, a=a, count=np.asarray(3))
    assert [path.name for path in tmp_path.iterdir()] == [".out-checkpoint"]
    again = Checkpoint(tmp_path / "out", SETTINGS, resume=True).load("state")
    assert again is not None
    np.testing.assert_array_equal(again["a"], a)
    assert again["count"] == 3
    assert Checkpoint(tmp_path / "out", SETTINGS, resume=True).load("other") is None
    checkpoint.remove()
    assert not list(tmp_path.iterdir())


def test_a_search_result_is_read_back(rng, x64):
    k = np.stack([np.eye(12) * 2, np.ones((12, 12))])
    splits = ((np.arange(8), np.arange(8, 12)),)
    found = learn_weights(SearchProblem(k, rng.normal(size=(12, 1)), splits), np.ones(1), SearchSettings())
    again = restore_weights(flatten_weights(found))
    assert again is not None
    np.testing.assert_array_equal(again.omega, found.omega)
    np.testing.assert_array_equal(again.descent.value_history, found.descent.value_history)
    assert str(again.descent.message) == str(found.descent.message)


def test_a_new_run_replaces_the_checkpoint_of_the_one_before(tmp_path):
    started(tmp_path, a=np.ones(1))
    Checkpoint(tmp_path / "out", SETTINGS, resume=False, seconds=0).save("other", {"b": np.ones(1)})
    resumed = Checkpoint(tmp_path / "out", SETTINGS, resume=True)
    assert resumed.load("state") is None
    assert resumed.load("other") is not None


def test_writing_waits_until_flushed_and_only_the_first_process_writes(tmp_path):
    reader = Checkpoint(tmp_path / "out", SETTINGS, resume=False, writes=False, seconds=0)
    reader.save("state", {"a": np.ones(1)})
    reader.flush()
    assert not list(tmp_path.iterdir())
    slow = Checkpoint(tmp_path / "out", SETTINGS, resume=False, seconds=1e9)
    slow.save("state", {"a": np.zeros(1)})
    slow.save("state", {"a": np.ones(1)})
    stored = Checkpoint(tmp_path / "out", SETTINGS, resume=True)
    assert stored.load("state")["a"] == 0
    slow.flush()
    assert stored.load("state")["a"] == 1


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
        Checkpoint(tmp_path / "out", settings, resume=True).load("state")
    assert "\n" not in str(caught.value)
    assert "--resume" in str(caught.value)
