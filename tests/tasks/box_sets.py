"""Detection data sets made by tests, in the exact form that they have on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from natdeploy.tasks.boxes import Objects

CATS = ((18, "dog"), (1, "person"))
"""Ids as COCO has them: neither from 0 nor in order."""


def save(path: Path, number: int = 0, height: int = 12, width: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), (number, 255 - number, 9), dtype=np.uint8)).save(path)
    return path


def annotation(key: int, image: int, category: int, box: Any, crowd: int = 0) -> dict[str, Any]:
    outline: Any = {"counts": [20, 4, 8, 4, 156], "size": [12, 16]} if crowd else [[1.0, 2.0, 5.0, 2.0, 5.0, 8.0]]
    area = {"area": 24.0, "iscrowd": crowd}
    return {"segmentation": outline, **area, "image_id": image, "bbox": box, "category_id": category, "id": key}


def coco(
    path: Path,
    annotations: Sequence[Mapping[str, Any]],
    images: Sequence[int] = range(10),
    categories: Any = CATS,
    *,
    height: int = 12,
    width: int = 16,
) -> dict[str, Any]:
    """Writes a file of instances about images called `000000000007.png`."""
    content = {
        "info": {"description": "made", "url": "", "version": "1.0", "year": 2017, "contributor": "", "date_created": "2017/09/01"},
        "licenses": [{"url": "", "id": 1, "name": "none"}],
        "images": [
            {
                "license": 1,
                "file_name": f"{key:012}.png",
                "coco_url": "",
                "height": height,
                "width": width,
                "flickr_url": "",
                "id": key,
            }
            | {"date_captured": "2013-11-14 11:18:45"}
            for key in images
        ],
        "annotations": list(annotations),
        "categories": [{"supercategory": "thing", "id": key, "name": name} for key, name in categories],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return content


def voc_xml(path: Path, objects: Sequence[tuple[str, Sequence[object], int]], height: int = 12, width: int = 16) -> Path:
    """An annotation as VOC and labelImg write it."""
    body = "".join(
        f"<object>\n<name>{name}</name>\n<pose>Unspecified</pose>\n<truncated>0</truncated>\n<difficult>{difficult}</difficult>\n<bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        + "</bndbox>\n</object>"
        for name, box, difficult in objects
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation>\n<folder>VOC2012</folder>\n<filename>{path.stem}.jpg</filename>\n<size>\n<width>{width}</width>\n"
        f"<height>{height}</height>\n<depth>3</depth>\n</size>\n<segmented>0</segmented>\n{body}\n</annotation>\n"
    )
    return path


def rows(objects: Objects) -> list[tuple[list[float], int, bool]]:
    return list(zip(objects.boxes.tolist(), objects.labels.tolist(), objects.crowd.tolist(), strict=True))
