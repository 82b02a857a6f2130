"""`python -m nftk_jax.paths` as a user runs it: the terms add up, errors are one line, nothing is half-written."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nftk_jax import paths


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 40)
    x = (255 * rng.random((40, 4, 3)) * (0.3 + 0.3 * y[:, None, None])).astype(np.uint8)
    names = np.array(["ant", "bee", "<cat>"])[y]
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, x_train=x[:25], y_train=names[:25], x_test=x[25:], y_test=names[25:])
    return path


CASES = {
    "relu": ["--loss", "mse", "--figure-format", "svg"],
    "nftk": [
        "--loss",
        "cross-entropy",
        "--network",
        "nftk",
        "--batch-size",
        "5",
        "--momentum",
        "0.8",
        "--weight-decay",
        "0.01",
        "--activation",
        "gelu",
        "--tolerance",
        "None",
    ],
    "adamw": [
        *("--loss", "cross-entropy", "--optimiser", "adamw", "--learning-rate", "0.01", "--weight-decay", "0.1"),
        *("--schedule", "cosine", "--warmup", "2", "--clip", "0.1", "--batch-size", "5", "--activation", "gelu"),
    ],
    "layer norm": ["--layer-norm", "--optimiser", "adam", "--activation", "gelu", "--tolerance", "None"],
}


@pytest.mark.parametrize("case", CASES)
def test_the_saved_terms_add_up_to_the_network(case, data, tmp_path, run):
    output = tmp_path / "out"
    status, printed, error = run(
        paths.command, "--dataset", data, "--steps", 8, "--width", 8, *CASES[case], "--output", output
    )
    assert (status, error) == (0, "")
    assert "Rebuilt to" in printed
    metrics = json.loads((output / "metrics.json").read_text())
    arrays = np.load(output / "terms.npz")
    assert arrays["terms"].shape == (15, 25, 3)
    rebuilt = arrays["start"] + arrays["regulariser"] + arrays["terms"].sum(axis=1)
    error = np.abs(rebuilt - arrays["output"]).max()
    assert error <= 1e-3 * np.abs(arrays["output"]).max()
    assert metrics["reconstruction"]["max_abs_error"] == pytest.approx(error)
    assert metrics["reconstruction"]["intervals"] == 8 * 15 + metrics["reconstruction"]["bisections"]
    assert bool(np.abs(arrays["regulariser"]).max() > 0) == (case in ("nftk", "adamw"))
    layers = metrics["layers"]
    names = {"hidden_1", "hidden_2", "readout_2"} | ({"readout_1", "omega_1", "omega_2"} if case == "nftk" else set())
    if case == "layer norm":
        assert metrics["config"]["layer_norm"] is True
        assert error <= 1e-6 * np.abs(arrays["output"]).max()
        assert "(gelu, layer norm)" in (output / "report.html").read_text()
        names |= {"norm_1", "norm_2"}
    assert set(layers["names"]) == names
    assert (layers["omega"] is None) == (case != "nftk")
    kind = "svg" if case == "relu" else "png"
    drawn = ("reconstruction", "influences", "layers", "classes")
    assert {path.name for path in (output / "figures").iterdir()} == {f"{name}.{kind}" for name in drawn}
    page = (output / "report.html").read_text()
    if case == "adamw":
        assert error <= 1e-5 * np.abs(arrays["output"]).max()
        assert 0 < metrics["training"]["clipped_steps"] <= 8
        assert "AdamW, learning rate 0.01 with a cosine schedule after 2 steps of warm-up, gradients clipped" in page
    assert "&lt;cat&gt;" in page
    assert "<cat>" not in page


def test_influences_are_the_largest_terms(data, tmp_path, run):
    output = tmp_path / "out"
    assert run(paths.command, "--dataset", data, "--steps", 8, "--width", 8, "--output", output)[0] == 0
    metrics, arrays = json.loads((output / "metrics.json").read_text()), np.load(output / "terms.npz")
    for row in metrics["influences"]:
        terms = arrays["terms"][row["query"], :, row["output"]]
        assert row["output"] == arrays["output"][row["query"]].argmax()
        assert row["positive"][0]["term"] == terms.max() > 0 > terms.min() == row["negative"][0]["term"]
        assert row["positive"][0]["sample"] == terms.argmax()
        assert row["sum_of_terms"] == pytest.approx(row["positive_sum"] + row["negative_sum"])
        total = row["start"] + row["regulariser"] + row["sum_of_terms"]
        assert row["completeness_error"] == pytest.approx(abs(total - row["value"]))


def test_reviews_are_shown_as_texts_safe_in_html(tmp_path, monkeypatch, run):
    def read_texts(dataset, data_dir, *, report):
        return tuple([f"{part} <b>{row}</b>" for row in range(n)] for part, n in (("train", 20), ("test", 6)))

    monkeypatch.setattr("nftk_jax.datasets.read_texts", read_texts)
    flags = ["--dataset", "imdb-small", "--n-train", 20, "--n-test", 6, "--steps", 4, "--width", 6]
    assert run(paths.command, *flags, "--output", tmp_path / "out")[0] == 0
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["influences"]
    page = (tmp_path / "out" / "report.html").read_text()
    for row in rows:
        assert row["text"] == f"test <b>{row['query']}</b>"
        for entry in row["positive"] + row["negative"]:
            assert entry["text"] == f"train <b>{entry['sample']}</b>"
        for entry in row["positive"][:1] + row["negative"][:1]:
            assert f"train &lt;b&gt;{entry['sample']}&lt;/b&gt;" in page
    assert "<b>1</b>" not in page
    assert not (tmp_path / "out" / "figures" / "influences.png").exists()


def test_regression_in_float64(tmp_path, run):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4))
    np.savez(tmp_path / "r.npz", x_train=x[:20], y_train=x[:20, :2] ** 2, x_test=x[20:], y_test=x[20:, :2] ** 2)
    flags = ["--precision", "float64", "--activation", "gelu", "--tolerance", "1e-8", "--steps", 5, "--width", 6]
    status, _, error = run(paths.command, "--dataset", tmp_path / "r.npz", *flags, "--output", tmp_path / "out")
    assert (status, error) == (0, "")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["reconstruction"]["relative_error"] <= 1e-8
    assert metrics["classes"] is None


def test_outputs_that_are_all_zero_are_explained(tmp_path, run):
    """Constant features and as many rows of one class as of the other: no gradient."""
    labels = np.arange(12) % 2
    np.savez(tmp_path / "z.npz", x_train=np.ones((12, 3)), y_train=labels, x_test=np.ones((4, 3)), y_test=labels[:4])
    flags = ["--loss", "cross-entropy", "--steps", 3, "--width", 4, "--output", tmp_path / "out"]
    status, _, error = run(paths.command, "--dataset", tmp_path / "z.npz", *flags)
    assert (status, error) == (0, "")
    block = json.loads((tmp_path / "out" / "metrics.json").read_text())["reconstruction"]
    assert (block["largest_output"], block["relative_error"]) == (0, 0)


BAD = {
    "diverges": (["--learning-rate", "50"], 1, "lower --learning-rate, 50 now"),
    "tolerance": (["--tolerance", "0"], 2, "--tolerance must be"),
    "quadrature": (["--quadrature", "0"], 2, "--quadrature, the number of nodes, must be"),
    "batch": (["--batch-size", "99"], 2, "--batch-size must be at most"),
    "momentum": (["--momentum", "1"], 2, "--momentum must be"),
    "momentum of adam": (["--optimiser", "adam", "--momentum", "0.9"], 2, "--momentum must be 0 for adam"),
    "optimiser": (["--optimiser", "lion"], 2, "lion"),
    "warmup": (["--warmup", "60"], 2, "--warmup must be below the 60 --steps; got 60"),
    "clip": (["--clip", "0"], 2, "--clip must be"),
    "nesterov": (["--nesterov"], 2, "--nesterov must go with a --momentum above 0"),
    "steps": (["--steps", "0"], 2, "--steps must be"),
    "seed": (["--seed", "-1"], 2, "--seed must be"),
    "large seed": (["--seed", str(2**32)], 2, "--seed must be a whole number from 0 to 4294967295; got 4294967296"),
    "larger seed": (["--seed", str(2**63)], 2, "--seed must be"),
    "activation": (["--activation", "softmax"], 2, "--activation must be one of"),
    "loss": (["--loss", "hinge"], 2, "hinge"),
    "width": (["--width", "0"], 2, "--width must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_ends_in_one_line(case, data, tmp_path, run):
    flags, expected, message = BAD[case]
    status, _, error = run(paths.command, "--dataset", data, *flags, "--output", tmp_path / "out")
    assert status == expected
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_terms_that_do_not_fit_are_refused(data, tmp_path, monkeypatch, run):
    monkeypatch.setattr("nftk_jax.memory.available_memory", lambda: 2**10)
    status, _, error = run(paths.command, "--dataset", data, "--output", tmp_path / "out")
    assert status == 2
    assert "--n-train" in error
    assert not list(tmp_path.iterdir())
