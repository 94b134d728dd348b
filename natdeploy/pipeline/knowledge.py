"""What earlier runs found out about a space, for the surrogate of a new one."""

from __future__ import annotations

import numpy as np

from natdeploy.errors import UsageError
from natdeploy.pipeline.config import SearchConfig
from natdeploy.pipeline.evaluate import ranking_error
from natdeploy.search import Knowledge
from natdeploy.space import Arch, SearchSpace, space_toml
from natdeploy.store import RunStore

LEAST = 10
"""Architectures from which a run can teach anything."""


def read_knowledge(config: SearchConfig, space: SearchSpace) -> list[Knowledge]:
    """Architectures with errors of the runs that a search is to learn from.

    Raises:
        UsageError: one of them searched another space, or evaluated too little.
    """
    result = []
    for folder in config.warm_start:
        with RunStore.open(folder) as store:
            if store.get("searched_space") != space_toml(space):
                raise UsageError(f"{folder} cannot teach this search: it searched another space than {space.name} at this width")
            latest = {each.arch: each for each in store.evaluations() if each.whole}
        if len(latest) < LEAST:
            raise UsageError(f"{folder} cannot teach this search: it evaluated {len(latest)} architectures, {LEAST} are needed")
        archs = [Arch.parse(text) for text in latest]
        result.append((space.encode_all(archs), np.array([ranking_error(each) for each in latest.values()])))
    return result


def stored_knowledge(store: RunStore) -> list[Knowledge]:
    """What a run began with, whatever has become of the folders."""
    pairs = store.get("knowledge") or []
    return [(np.array(genotypes, dtype=np.int64), np.array(errors, dtype=np.float64)) for genotypes, errors in pairs]
