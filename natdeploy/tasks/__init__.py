"""What is learned: images and labels, the loss, the metric."""

from natdeploy.tasks.augment import Augmentation
from natdeploy.tasks.box_files import scan_boxes
from natdeploy.tasks.boxes import Boxed, BoxSet, Objects, decode_boxes, split_boxes
from natdeploy.tasks.classification import Classification
from natdeploy.tasks.data import ImageSet, Splits, scan_images, split
from natdeploy.tasks.detection import BoxAugmentation, Detection
from natdeploy.tasks.masks import Masked, MaskSet, decode_masks, first_size, palette, scan_masks, split_masks
from natdeploy.tasks.named import NAMED, NamedSet, Recipe, named_set, open_named
from natdeploy.tasks.pixels import Pixels, PixelSource, decode, open_pixels
from natdeploy.tasks.segmentation import MaskAugmentation, Segmentation
from natdeploy.tasks.task import METRICS, SplitName, Tally, Targets, Task, TaskName, moved, total

__all__ = [
    "METRICS",
    "NAMED",
    "Augmentation",
    "BoxAugmentation",
    "BoxSet",
    "Boxed",
    "Classification",
    "Detection",
    "ImageSet",
    "MaskAugmentation",
    "MaskSet",
    "Masked",
    "NamedSet",
    "Objects",
    "PixelSource",
    "Pixels",
    "Recipe",
    "Segmentation",
    "SplitName",
    "Splits",
    "Tally",
    "Targets",
    "Task",
    "TaskName",
    "decode",
    "decode_boxes",
    "decode_masks",
    "first_size",
    "moved",
    "named_set",
    "open_named",
    "open_pixels",
    "palette",
    "scan_boxes",
    "scan_images",
    "scan_masks",
    "split",
    "split_boxes",
    "split_masks",
    "total",
]
