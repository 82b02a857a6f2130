"""MNIST and Fashion-MNIST: found on disk in the usual layouts, or fetched; either way exactly the published arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from nftk_jax.datasets import archive, download, idx
from nftk_jax.datasets.errors import DataError


@dataclasses.dataclass(frozen=True)
class Remote:
    """A published file: its name, digest and length in bytes."""

    name: str
    sha256: str
    size: int


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A published set of images in four IDX files.

    Attributes:
      name: its name here, which is also the folder that it is fetched to.
      torchvision: the folder that torchvision uses.
      system: folders of operating system packages.
      shapes: of each array.
      digests: SHA-256 of each array's bytes, C order, uint8: what "is this data set" means.
      remotes: the file of each array, gzipped.
      mirrors: addresses that end before the file name.
      titles: names of the classes.
    """

    name: str
    torchvision: str
    system: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    digests: Mapping[str, str]
    remotes: Mapping[str, Remote]
    mirrors: tuple[str, ...]
    titles: tuple[str, ...] | None = None


#: Labels come first: they tell the sets apart and are small.
_STEMS = {
    "y_train": "train-labels-idx1-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
    "x_train": "train-images-idx3-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
}
_SHAPES = {"y_train": (60000,), "y_test": (10000,), "x_train": (60000, 28, 28), "x_test": (10000, 28, 28)}

MNIST = ImageSet(
    name="mnist",
    torchvision="MNIST",
    system=(),
    shapes=_SHAPES,
    digests={
        "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    },
    remotes={
        key: Remote(f"{_STEMS[key]}.gz", sha256, size)
        for key, sha256, size in (
            ("y_train", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881),
            ("y_test", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542),
            ("x_train", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422),
            ("x_test", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1_648_877),
        )
    },
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
)

FASHION_MNIST = ImageSet(
    name="fashion-mnist",
    torchvision="FashionMNIST",
    system=("/usr/share/datasets/fashion-mnist",),  # Debian and Ubuntu: the package dataset-fashion-mnist
    shapes=_SHAPES,
    digests={
        "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    },
    remotes={
        key: Remote(f"{_STEMS[key]}.gz", sha256, size)
        for key, sha256, size in (
            ("y_train", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29_515),
            ("y_test", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5_148),
            ("x_train", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", 26_421_880),
            ("x_test", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 4_422_102),
        )
    },
    mirrors=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    titles=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

IMAGE_SETS = {image_set.name: image_set for image_set in (MNIST, FASHION_MNIST)}


class _NotThisSetError(DataError):
    """The files are sound, but hold something else than the set asked for."""


def load_image_set(
    image_set: ImageSet,
    data_dir: pathlib.Path,
    *,
    make: bool = True,
    timeout: float = 10.0,
    report: download.Report | None = None,
) -> dict[str, np.ndarray]:
    """Find a set on disk, or fetch it into ``data_dir/<name>``.

    Looked for, in this order: ``data_dir/<name>``, torchvision's folder in `data_dir`, `data_dir` itself, and the
    folders of operating system packages; in each ``<name>.npz``, then the four IDX files, gzipped or not. MNIST and
    Fashion-MNIST share their file names, so what is found is compared with the digests of the published arrays. A
    folder that holds the other set is passed over, and where no other folder has the right one, refused.

    Args:
      image_set: which.
      data_dir: the user's data directory.
      make: whether it may be made where it is absent; otherwise it is refused before anything is fetched.
      timeout: seconds without a byte after which a mirror is given up.
      report: called as bytes arrive.

    Returns:
      x_train, y_train, x_test, y_test, uint8, images of shape (n, 28, 28).

    Raises:
      DataError: a file found is damaged, the folder holds another set, or the set is absent and cannot be fetched.
    """
    home = data_dir / image_set.name
    folders = [home, data_dir / image_set.torchvision / "raw", data_dir, *map(pathlib.Path, image_set.system)]
    refused: _NotThisSetError | None = None
    for folder in folders:
        try:
            arrays = _read_folder(image_set, folder)
        except _NotThisSetError as error:
            refused = refused or error
            continue
        if arrays is not None:
            return arrays
    if refused is not None:
        raise refused
    if os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise DataError(f"the data directory {data_dir} is a file; name a directory with `data_dir` or $NFTK_DATA")
    if not make and not os.path.exists(data_dir):
        raise DataError(
            f"the data directory {data_dir} does not exist; make it, to have {image_set.name} fetched into it, or name "
            "another with `data_dir` or $NFTK_DATA"
        )
    _fetch(image_set, home, timeout, report)
    arrays = _read_folder(image_set, home)
    if arrays is None:
        raise DataError(f"the files of {image_set.name} vanished from {home} while they were read; run again")
    return arrays


def _read_folder(image_set: ImageSet, folder: pathlib.Path) -> dict[str, np.ndarray] | None:
    """Read the set from one folder, or return None where the folder does not hold all of it."""
    path = folder / f"{image_set.name}.npz"
    if os.path.isfile(path):  # unlike Path.is_file, False where permission is denied
        return _read_npz(image_set, path)
    paths = {key: _find_idx(folder, stem) for key, stem in _STEMS.items()}
    arrays = {}
    for key, path in paths.items():
        if path is None:
            return None
        arrays[key] = _verify(image_set, path, key, idx.read_idx(path, shape=image_set.shapes[key]))
    return arrays


def _read_npz(image_set: ImageSet, path: pathlib.Path) -> dict[str, np.ndarray]:
    for key, layout in archive.read_layouts(path, image_set.shapes).items():
        rows, size = len(image_set.shapes[key][1:]), int(np.prod(image_set.shapes[key][1:]))
        flat = (image_set.shapes[key][0], size) if rows else image_set.shapes[key]
        if layout.shape not in (image_set.shapes[key], flat) or layout.dtype.kind not in "iu":
            raise _not_this_set(image_set, path, f"{key} has shape {layout.shape} of {layout.dtype}")
    arrays = archive.read_arrays(path, image_set.shapes)
    return {key: _verify(image_set, path, key, arrays[key]) for key in _STEMS}


def _find_idx(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
    # Some unpackers write train-images.idx3-ubyte.
    names = [stem + suffix for suffix in ("", ".gz")] + [
        stem.replace("-idx", ".idx") + suffix for suffix in ("", ".gz")
    ]
    return next((folder / name for name in names if os.path.isfile(folder / name)), None)


def _verify(image_set: ImageSet, path: pathlib.Path, key: str, array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array, dtype=np.uint8).reshape(image_set.shapes[key])
    digest = hashlib.sha256(array.data.cast("B")).hexdigest()
    if digest == image_set.digests[key]:
        return array
    for other in IMAGE_SETS.values():
        if digest in other.digests.values():
            raise _not_this_set(image_set, path, f"{key} is that of {other.name}: the two sets share file names")
    raise _not_this_set(image_set, path, f"{key} is not the published one")


def _not_this_set(image_set: ImageSet, path: pathlib.Path, reason: str) -> _NotThisSetError:
    remedy = f", or pass {path} itself as the data set" if path.suffix == ".npz" else ""
    return _NotThisSetError(
        f"{path} does not hold {image_set.name} ({reason}); put {image_set.name} in a folder {image_set.name} "
        f"of the data directory and move this away{remedy}"
    )


def _fetch(image_set: ImageSet, folder: pathlib.Path, timeout: float, report: download.Report | None) -> None:
    mirrors = list(image_set.mirrors)
    for remote in image_set.remotes.values():
        target = folder / remote.name
        if os.path.isfile(target):
            continue  # an earlier fetch was interrupted; its contents are verified on reading
        try:
            served = download.fetch(
                [mirror + remote.name for mirror in mirrors],
                target,
                sha256=remote.sha256,
                size=remote.size,
                timeout=timeout,
                report=report,
            )
        except download.DownloadError as error:
            names = ", ".join(remote.name for remote in image_set.remotes.values())
            raise DataError(
                f"{image_set.name} is not in {folder.parent} and {error}; with a network run again, or without one put "
                f"{image_set.name}.npz, or {names}, in {folder}, or name the directory that has them with `data_dir` "
                "or $NFTK_DATA"
            ) from error
        mirrors.sort(key=lambda mirror: not served.startswith(mirror))  # the one that answered comes first
