"""NAT's text for an architecture of its space, as the encodings that it released have it (arXiv 2005.05859).

23 digits: two of the resolution's index, one of the width's, and the code of each of the 20 slots. People may put `|` and spaces
between them: `08|0|1100 1440 5510 5220 8877` is NAT-M1.
"""

from __future__ import annotations

import re

from natdeploy.errors import UsageError
from natdeploy.space.arch import Arch
from natdeploy.space.catalog import OFA_MBV3

_SEPARATORS = re.compile(r"[|\s]")
_FORM = re.compile(r"\d{23}", re.ASCII)


def parse_nat(text: str) -> Arch:
    """The architecture of `ofa_mbv3` that a text of NAT names, with or without separators; layers after a gap move forward.

    Raises:
        UsageError: another form, or a digit that is not of the space.
    """
    digits = _SEPARATORS.sub("", text)
    if _FORM.fullmatch(digits) is None:
        raise UsageError(f"{text!r} is no architecture of NAT; expected 23 digits such as 08|0|1100 1440 5510 5220 8877")
    genotype = [int(digits[:2]), *map(int, digits[2:])]
    for value, low, high, variable in zip(genotype, OFA_MBV3.lower, OFA_MBV3.upper, _VARIABLES, strict=True):
        if not low <= value <= high:
            raise UsageError(f"{text!r} is no architecture of NAT: its {variable} is {value}, not {low} to {high}")
    return OFA_MBV3.decode(genotype)


def nat_text(arch: Arch) -> str:
    """What NAT calls an architecture of `ofa_mbv3`, with separators.

    Raises:
        UsageError: it is not of that space.
    """
    genotype = OFA_MBV3.encode(arch).tolist()
    stages = ("".join(map(str, genotype[part])) for _, part in OFA_MBV3.elastic)
    return f"{genotype[0]:02d}|{genotype[1]}|{' '.join(stages)}"


_VARIABLES = ("resolution index", "width index", *(f"code {slot}" for slot in range(1, len(OFA_MBV3.slots) + 1)))
