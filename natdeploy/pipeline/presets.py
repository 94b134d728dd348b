"""Settings for three kinds of search. Each can be set by itself; docs/search.md and docs/training.md tell the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from natdeploy.tasks.named import Recipe

Preset = Literal["quick", "paper", "thorough"]
Strategy = Literal["evolution", "gradient", "random"]
"""How architectures are chosen: what a surrogate and evolution propose (NAT), by gradient (FNA), or by chance."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # For minutes on a processor: the defaults of the settings themselves; sizes of archive and rounds follow from the budget.
    "quick": {"nat": {"measure_every": 2}},
    # Neural Architecture Transfer as its authors run it (facts of their code and of its reproduction, docs/search.md): 30 rounds of
    # five epochs after five of warm-up, four sampled nets a step that learn from the largest, no training after the search.
    "paper": {
        "schedule": {"epochs": 155.0, "warmup": 5 / 155, "final": 0.0},
        "nat": {
            "initial": 100,
            "rounds": 30,
            "infill": 8,
            "parents": 150,
            "population": 100,
            "generations": 100,
            "surrogate": "rbf",
            "screen": False,
        },
        "adapt": {
            "train": {"learning_rate": 2.5e-3, "weight_decay": 3e-4, "clip": 5.0, "batch_size": 96, "warmup": 5 / 155},
            "head_share": 0.0,
            "scheme": "single",
            "sampled_share": 1.0,
            "students": 3,
            "student_weight": 1.0,
            "resolution": "shared",
            "teacher": "average",
        },
        "augmentation": {"policy": "autoaugment", "cutmix": 1.0, "mix_probability": 0.5},
    },
    # For hours on an accelerator: a large archive, sandwich and distillation, and the nets that stand out trained alone at the end.
    "thorough": {
        "schedule": {"epochs": 300.0, "warmup": 0.15, "final": 0.35},
        "nat": {"initial": 150, "rounds": 15, "infill": 16, "parents": 75, "distribution": "pairs", "measure_every": 5},
        "adapt": {
            "scheme": "sandwich",
            "students": 2,
            "teacher": "inplace",
            "largest_share": 0.05,
        },
        "augmentation": {"policy": "randaugment", "cutmix": 1.0, "mix_probability": 0.5},
        "finetune_minutes": 10.0,
    },
}


def published(recipe: Recipe) -> dict[str, Any]:
    """What `paper` takes from the recipe of a data set."""
    # One stretch of a round's length warms up; where rounds adapt nothing, one epoch fits the classifier.
    epochs = (recipe.rounds + 1) * recipe.round_epochs or 1
    warmup = (recipe.round_epochs or 1) / epochs
    return {
        "resolutions": recipe.resolutions,
        "schedule": {"epochs": float(epochs), "warmup": warmup},
        "nat": {"rounds": recipe.rounds},
        "adapt": {"train": {"batch_size": recipe.batch_size, "warmup": 1 / (recipe.rounds + 1)}},
        "augmentation": recipe.augmentation.model_dump(exclude_unset=True),
    }


SINGLE: Mapping[str, Any] = {
    "schedule": {"warmup": 0.1, "final": 0.85, "final_nets": 1, "final_choice": "best", "final_halvings": 2},
}
"""Over a preset, of a search for one network: short, since what matters is how long that one is trained (docs/search.md)."""

GRADIENT: Mapping[str, Mapping[str, Any]] = {
    # Steps of weights draw every architecture from the logits, and a run has the one that comes out.
    "quick": {
        "schedule": {"warmup": 0.15, "final": 0.5},
        "adapt": {"sampled_share": 1.0},
        "gradient": {"prior": 2.0},
    },
    # FNA as its authors searched for segmentation (the submission, docs/search.md), and as long again for the network it found.
    "paper": {
        "schedule": {"epochs": 160.0, "warmup": 30 / 160, "final": 0.5},
        "adapt": {
            "train": {"learning_rate": 0.02, "weight_decay": 5e-4, "batch_size": 16, "warmup": 5 / 160},
            "head_share": 0.0,
            "sampled_share": 1.0,
        },
        "gradient": {
            "learning_rate": 1e-3,
            "betas": (0.9, 0.999),
            "weight_decay": 4e-5,
            "batch_size": 16,
            "cost": "macs",
            "penalty": 9e-3,
            "base": 45.0,
            "factor": 10.0,
            "weights": "seed",
        },
    },
    "thorough": {
        "schedule": {"epochs": 300.0, "warmup": 0.15, "final": 0.5},
        "adapt": {"sampled_share": 1.0},
        "gradient": {"prior": 1.0, "learning_rate": 0.02},
        "augmentation": {"policy": "randaugment", "cutmix": 1.0, "mix_probability": 0.5},
    },
}
"""Where the strategy is `gradient`."""


def with_strategy(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, in which `strategy` and what the loop of rounds proposes say the same, whichever of them is given."""
    proposed = (_table(settings.get("nat")) or {}).get("propose")
    strategy = settings.get("strategy", proposed or "evolution")
    return merged({"nat": {"propose": "random" if strategy == "random" else "evolution"}}, {**settings, "strategy": strategy})


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of both, table by table; where both have one, that of `over`. A settings object counts as the table it dumps to."""
    result = dict(under)
    for name, value in over.items():
        below, above = result.get(name), _table(value)
        result[name] = merged(below, above) if isinstance(below, Mapping) and above is not None else value
    return result


def _table(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in value.model_fields_set}
    return None
