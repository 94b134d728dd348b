"""Weights shared by all architectures of a space: the supernet, its subnets, and how a pretrained network becomes one."""

from natdeploy.supernet.calibrate import calibrate
from natdeploy.supernet.convention import InputConvention, choose_input, stated_input
from natdeploy.supernet.heads import build_head
from natdeploy.supernet.layers import Padding
from natdeploy.supernet.mixture import Mixture, codes_of, mixed, stages_of
from natdeploy.supernet.network import Supernet
from natdeploy.supernet.remap import RemapReport, RemapRules, remap, same_head
from natdeploy.supernet.sorting import sort_channels
from natdeploy.supernet.subnet import Subnet, build_block
from natdeploy.supernet.weights import Seed, load_supernet, read_seed, restore, save_supernet, supernet_of, write_seed

__all__ = [
    "InputConvention",
    "Mixture",
    "Padding",
    "RemapReport",
    "RemapRules",
    "Seed",
    "Subnet",
    "Supernet",
    "build_block",
    "build_head",
    "calibrate",
    "choose_input",
    "codes_of",
    "load_supernet",
    "mixed",
    "read_seed",
    "remap",
    "restore",
    "same_head",
    "save_supernet",
    "sort_channels",
    "stages_of",
    "stated_input",
    "supernet_of",
    "write_seed",
]
