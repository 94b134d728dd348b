"""Real photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor


@pytest.fixture(scope="session")
def photos(shared: Path) -> Tensor:
    """(32, 3, 224, 224) in [0, 1]: flowers, the same number of every species as far as 32 go."""
    species = sorted((shared / "data/flowers12/train").iterdir())
    paths = [sorted(folder.iterdir())[number] for number in range(3) for folder in species][:32]
    pixels = [np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div(255)
