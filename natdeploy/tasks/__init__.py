"""What is learned: images and labels, the loss, the metric."""

from natdeploy.tasks.augment import Augmentation
from natdeploy.tasks.classification import Classification
from natdeploy.tasks.data import ImageSet, Splits, scan_images, split
from natdeploy.tasks.named import NAMED, NamedSet, Recipe, named_set, open_named
from natdeploy.tasks.pixels import Pixels, PixelSource, decode, open_pixels
from natdeploy.tasks.task import SplitName, Task

__all__ = [
    "NAMED",
    "Augmentation",
    "Classification",
    "ImageSet",
    "NamedSet",
    "PixelSource",
    "Pixels",
    "Recipe",
    "SplitName",
    "Splits",
    "Task",
    "decode",
    "named_set",
    "open_named",
    "open_pixels",
    "scan_images",
    "split",
]
