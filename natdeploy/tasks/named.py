"""NAT's data sets by name: where their files lie, how they are split and what was published about learning them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from natdeploy.errors import DataError, NatdeployError
from natdeploy.progress import Progress, Silent
from natdeploy.tasks import readers
from natdeploy.tasks.augment import Augmentation
from natdeploy.tasks.data import ImageSet, listed


@dataclass(frozen=True)
class Recipe:
    """How NAT (arXiv 2005.05859), or the nearest public code, learns a set.

    Attributes:
        resolutions: one is drawn for every batch, px.
        batch_size: images a step.
        rounds: of search and adaptation.
        round_epochs: epochs of adaptation in each round.
        validation: training images that are held out to compare networks by; None where no source says.
        augmentation: of training images.
    """

    resolutions: tuple[int, ...]
    batch_size: int
    rounds: int
    round_epochs: int
    validation: int | None
    augmentation: Augmentation


@dataclass(frozen=True)
class NamedSet:
    """A data set that is known by name.

    Attributes:
        name: what it is called.
        classes: how many.
        train: images to learn from; a published validation part is among them.
        test: images of the published test part.
        files: what has to lie in the data folder, relative to it.
        home: page of its makers, or where its files are to be had; its terms are theirs.
        read: its images, from the data folder.
        recipe: what was published about learning it.
        fetch: downloads it to the data folder; None where that cannot be done.
    """

    name: str
    classes: int
    train: int
    test: int
    files: tuple[str, ...]
    home: str
    read: Callable[[Path], ImageSet]
    recipe: Recipe
    fetch: Callable[[Path], None] | None = None


# Sources of the recipes, public code all of them, for the paper's own is not: [MOEA] human-analysis/moea-nas-framework, [THE]
# simonesarti/MSc_Thesis (the authors' NAT class, extended), [ENC] AwesomeLemon/ENCAS, [V2] mikelzc1990/nsganetv2.
_RESOLUTIONS = tuple(range(192, 257, 4))  # [MOEA]; every fourth from 192 to 256
_ROUNDS = 30  # [MOEA], [ENC], [V2]
_EPOCHS = 5  # [MOEA], [ENC]; 150 in all
_AUGMENTATION = Augmentation(policy="autoaugment", cutmix=1.0, mix_probability=0.5)  # [MOEA]; its crops are padded, ours resized


def _recipe(batch_size: int, validation: int | None, round_epochs: int = _EPOCHS) -> Recipe:
    return Recipe(_RESOLUTIONS, batch_size, _ROUNDS, round_epochs, validation, _AUGMENTATION)


_CIFAR = _recipe(96, 5_000)  # batch: [MOEA], [ENC]; validation: [V2] ([ENC]: 10,000)
_MEDIUM = _recipe(96, None)  # batch: [MOEA]
_SMALL = _recipe(96, 500)  # batch: [MOEA]; validation: [V2]

_EVERY = (
    # Sizes: the makers' pages; facts in [V2]'s table agree but for two that are misprints there (CINIC-10: 9,000, Pets: 3,369).
    NamedSet(
        "cifar10",
        *(10, 50_000, 10_000),
        ("cifar-10-batches-py",),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        readers.cifar10,
        _CIFAR,
        readers.fetch_cifar10,
    ),
    NamedSet(
        "cifar100",
        *(100, 50_000, 10_000),
        ("cifar-100-python",),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        readers.cifar100,
        _CIFAR,
        readers.fetch_cifar100,
    ),
    NamedSet(
        "cinic10",
        *(10, 180_000, 90_000),  # train and valid, test
        ("CINIC-10/train", "CINIC-10/valid", "CINIC-10/test"),
        "https://datashare.ed.ac.uk/handle/10283/3192",
        readers.cinic10,
        _MEDIUM,
    ),
    NamedSet(
        "stl10",
        *(10, 5_000, 8_000),
        ("stl10_binary",),
        "https://cs.stanford.edu/~acoates/stl10",
        readers.stl10,
        _SMALL,
        readers.fetch_stl10,
    ),
    NamedSet(
        "food101",
        *(101, 75_750, 25_250),
        ("food-101/meta", "food-101/images"),
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
        readers.food101,
        _recipe(128, None),  # batch: [MOEA]
        readers.fetch_food101,
    ),
    NamedSet(
        "stanford-cars",
        *(196, 8_144, 8_041),
        (
            *("stanford_cars/cars_train", "stanford_cars/cars_test", "stanford_cars/cars_test_annos_withlabels.mat"),
            *("stanford_cars/devkit/cars_train_annos.mat", "stanford_cars/devkit/cars_meta.mat"),
        ),
        "https://github.com/pytorch/vision/issues/7545",
        readers.stanford_cars,
        _SMALL,
    ),
    NamedSet(
        "fgvc-aircraft",
        *(100, 6_667, 3_333),  # train and val, test; variants
        ("fgvc-aircraft-2013b/data",),
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
        readers.fgvc_aircraft,
        _SMALL,
        readers.fetch_fgvc_aircraft,
    ),
    NamedSet(
        "dtd",
        *(47, 3_760, 1_880),  # train and val, test; the first of ten partitions
        ("dtd/dtd/labels", "dtd/dtd/images"),
        "https://www.robots.ox.ac.uk/~vgg/data/dtd",
        readers.dtd,
        _SMALL,
        readers.fetch_dtd,
    ),
    NamedSet(
        "oxford-pets",
        *(37, 3_680, 3_669),
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
        "https://www.robots.ox.ac.uk/~vgg/data/pets",
        readers.oxford_pets,
        _SMALL,
        readers.fetch_oxford_pets,
    ),
    NamedSet(
        "flowers102",
        *(102, 2_040, 6_149),  # train and val, test
        ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        readers.flowers102,
        _recipe(32, 500),  # batch: [MOEA]; validation: [V2] ([MOEA] takes 2,000 of the test images, which we do not)
        readers.fetch_flowers102,
    ),
    NamedSet(
        "imagenet",
        *(1_000, 1_281_167, 50_000),  # train, val
        ("imagenet/train", "imagenet/val"),
        "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
        readers.imagenet,
        _recipe(128, 10_000, 0),  # batch: [MOEA]; validation: [V2]; no epochs, the supernet has learned it: [ENC], [V2]
    ),
)

NAMED: Mapping[str, NamedSet] = {each.name: each for each in _EVERY}
"""NAT's eleven data sets."""


def named_set(data: Path, named: Mapping[str, NamedSet] = NAMED) -> NamedSet | None:
    """The set that is meant by what a user gave as data; None if it is a folder, which comes before a set of the same name.

    Raises:
        DataError: it is neither.
    """
    if data.is_dir():
        return None
    if (found := named.get(str(data))) is None:
        raise DataError(
            f"there is no folder {data}; give a folder that holds one folder of images a class, "
            f"or the name of a data set: {', '.join(named)}"
        )
    return found


def open_named(wanted: NamedSet, root: Path, *, download: bool = False, progress: Progress | None = None) -> ImageSet:
    """The images of a set, its published test part marked as such.

    Args:
        wanted: which.
        root: the data folder; each set has a folder of its own in it.
        download: whether missing files may be fetched.
        progress: is told about a download.

    Raises:
        DataError: files are missing or damaged, cannot be fetched, or are not the whole set.
    """
    root = root.expanduser().absolute()
    if _missing(wanted, root):
        _get(wanted, root, download, progress or Silent())
    try:
        images = wanted.read(root)
    except NatdeployError:
        raise
    except Exception as error:  # what torchvision's and SciPy's readers make of damaged files can be nearly anything
        raise DataError(
            f"{wanted.name} in {root} is damaged or incomplete ({_sentence(error)}); "
            f"remove {', '.join(_folders(wanted))} there and get it anew"
        ) from error
    tested = sum(images.is_test)
    found, published = (len(images) - tested, tested, len(images.classes)), (wanted.train, wanted.test, wanted.classes)
    if found != published:
        raise DataError(
            f"{wanted.name} in {root} has {found[0]} images to learn from and {found[1]} for the test, of {found[2]} classes, but "
            f"{published[0]}, {published[1]} and {published[2]} are published; get it anew, or give its folder as an image folder"
        )
    if unknown := set(images.labels) - set(range(wanted.classes)):
        raise DataError(f"{wanted.name} in {root} has an image of class number {min(unknown)}, which has no name; get it anew")
    return images


def _get(wanted: NamedSet, root: Path, download: bool, progress: Progress) -> None:
    expected = f"{wanted.name} is not in {root}: {listed(_missing(wanted, root))} missing"
    if wanted.fetch is None:
        raise DataError(
            f"{expected}; it cannot be downloaded from here, get it from {wanted.home} (--data-root names another folder)"
        )
    if not download:
        raise DataError(f"{expected}; --download fetches it ({wanted.home}), --data-root names another folder")
    progress.note(f"downloading {wanted.name} to {root}; its makers' terms are on {wanted.home}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        # torchvision draws bars of its own.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            wanted.fetch(root)
    except Exception as error:  # networks, archives and disks fail in many ways
        raise DataError(
            f"{wanted.name} cannot be downloaded ({_sentence(error)}); try again, or get it from {wanted.home}"
        ) from error


def _missing(wanted: NamedSet, root: Path) -> list[str]:
    return [file for file in wanted.files if not (root / file).exists()]


def _folders(wanted: NamedSet) -> list[str]:
    return sorted({file.partition("/")[0] for file in wanted.files})


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
