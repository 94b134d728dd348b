"""Networks as files: foreign formats by name table, our own as safetensors. Nothing is pickled or unpickled."""

from natdeploy.supernet.weights.reader import read_seed
from natdeploy.supernet.weights.seed import Seed, write_seed
from natdeploy.supernet.weights.shared import load_supernet, restore, save_supernet, supernet_of

__all__ = ["Seed", "load_supernet", "read_seed", "restore", "save_supernet", "supernet_of", "write_seed"]
