"""What is learned: images and labels, the loss, the metric."""

from natdeploy.tasks.classification import Classification
from natdeploy.tasks.data import ImageSet, Pixels, Splits, decode, scan_images, split
from natdeploy.tasks.task import SplitName, Task

__all__ = ["Classification", "ImageSet", "Pixels", "SplitName", "Splits", "Task", "decode", "scan_images", "split"]
