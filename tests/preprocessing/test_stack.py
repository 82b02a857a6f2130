from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.sparse
from sklearn.svm import SVC
from sklearn.utils.validation import _num_samples

from nftk_jax import KernelStack


@pytest.fixture
def matrices(rng):
    return rng.normal(size=(3, 5, 4))


def dense(stack):
    return np.stack([part.toarray() if scipy.sparse.issparse(part) else part for part in stack.matrices])


@pytest.mark.parametrize("kind", ["array", "list", "sparse", "mixed"])
def test_a_block_of_a_stack_is_the_same_block_of_every_kernel(kind, matrices):
    sparse = [scipy.sparse.coo_matrix(matrices[0]), scipy.sparse.dok_array(matrices[1])]
    given = {"array": matrices, "list": list(matrices), "sparse": [*sparse, scipy.sparse.lil_array(matrices[2])]}
    stack = KernelStack(given.get(kind, [*sparse, matrices[2]]), names=["a", "b", "c"])
    assert stack.shape == (len(stack), 4) == (_num_samples(stack), 4)
    rows, columns = np.array([4, 0, 4]), np.array([3, 1])
    for key in (np.ix_(rows, columns), rows, slice(1, 3), np.arange(5) > 2, (slice(None), columns)):
        block = stack[key]
        np.testing.assert_array_equal(dense(block), np.stack([part[key] for part in matrices]))
        assert (block.names, block.n_kernels) == (("a", "b", "c"), 3)
    np.testing.assert_array_equal(dense(pickle.loads(pickle.dumps(stack))), matrices)
    np.testing.assert_array_equal(dense(stack), matrices)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [("float32", "float32"), ("float64", "float64"), ("int16", "float64"), ("bool", "float64"), ("g", "float64")],
)
def test_floats_keep_their_type_and_other_numbers_become_float64(dtype, kept):
    given = np.eye(3).astype(dtype)
    assert KernelStack(given).matrices[0].dtype == kept
    np.testing.assert_array_equal(KernelStack(given).matrices[0], np.eye(3))
    if dtype != "g":
        assert KernelStack(scipy.sparse.coo_array(given)).matrices[0].dtype == kept


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: KernelStack([]), ValueError, "one matrix or more"),
        (
            lambda: KernelStack([np.eye(2), np.eye(3)]),
            ValueError,
            r"all of one shape; got 2 of shapes \(2, 2\), \(3, 3",
        ),
        (lambda: KernelStack(np.ones((2, 2, 2, 2))), ValueError, r"shape \(L, m, n\), .* matrix 1 has shape \(2, 2, 2"),
        (lambda: KernelStack([[[1, np.inf]]]), ValueError, "kernel matrix 1 holds NaN or infinity"),
        (lambda: KernelStack(scipy.sparse.csr_array([[0, np.nan]])), ValueError, "matrix 1 holds NaN or infinity"),
        (lambda: KernelStack([np.eye(2), 1j * np.eye(2)]), ValueError, "matrix 2 must hold real .* complex128"),
        (lambda: KernelStack(np.ones((2, 3, 3)), names=["a", "a"]), ValueError, "names must be 2 different ones"),
        (lambda: KernelStack(np.eye(3), names=["a", "b"]), ValueError, "names must be 1 different ones"),
        (lambda: KernelStack(np.eye(3))[1], TypeError, r"by arrays, slices or numpy.ix_; got 1"),
        (lambda: SVC().fit(KernelStack(np.eye(3)), [0, 1, 1]), TypeError, "is not one array"),
    ],
)
def test_what_is_no_stack_of_kernels_is_refused_in_one_line(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
