"""Everything a search works on, put together from a configuration: images, seed, supernet, task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from natdeploy.errors import UsageError, WeightsError
from natdeploy.pipeline.config import SearchConfig
from natdeploy.pipeline.tasks import open_task
from natdeploy.progress import Progress, Silent
from natdeploy.space import Arch, Layer, SearchSpace, get_space, plain_space, space_toml
from natdeploy.store import RunStore
from natdeploy.supernet import (
    InputConvention,
    Padding,
    RemapReport,
    RemapRules,
    Seed,
    Supernet,
    choose_input,
    read_seed,
    remap,
    same_head,
    supernet_of,
)
from natdeploy.tasks import Splits, Task
from natdeploy.training.memory import keep_freed_memory

CONVENTION_IMAGES = 32
"""Photos by which the seed's input convention is recognised."""

FINAL_CALIBRATION = 240
"""Images, about, by which the final nets' BatchNorm statistics are taken: a few dozen cost a point of accuracy on flowers12."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """What a search works on.

    Attributes:
        space: restricted to the seed's width, with the task's head and shape of input.
        seed: the pretrained network.
        convention: how the seed wants its images.
        report: what of the seed went where.
        supernet: with the seed's weights.
        task: the user's images.
        device: where weights are trained.
    """

    space: SearchSpace
    seed: Seed
    convention: InputConvention
    report: RemapReport
    supernet: Supernet
    task: Task
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        return self.task.classes

    def final_task(self) -> Task:
        """The task once the architectures are chosen: all images but the test ones to learn from, and to calibrate by."""
        splits = self.task.splits
        learned = tuple(sorted(splits.train + splits.validation + splits.calibration))
        calibration = learned[:: max(1, len(learned) // FINAL_CALIBRATION)]
        return self.task.with_splits(Splits(learned, splits.validation, calibration, splits.test))

    def facts(self) -> dict[str, Any]:
        """JSON values that a resumed run needs to be set up alike."""
        return {
            **self.task.facts(),
            "aspect": self.space.aspect,
            "convention": asdict(self.convention),
            "seed_sha256": self.seed.sha256,
            "seed_metadata": dict(self.seed.metadata),
            "norm_eps": self.seed.norm_eps,
        }

    def seed_arch(self, resolution: int) -> Arch:
        """The seed's own architecture at a resolution; of another space, the one that is nearest to it."""
        return nearest(self.space, Arch(resolution, self.seed.arch.width, self.seed.arch.stages))


def choose_device(accelerator: str) -> torch.device:
    """The device a user means by `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: CUDA is asked for and is not there.
    """
    available = torch.cuda.is_available()
    if accelerator == "cuda" and not available:
        raise UsageError("--accelerator cuda: torch sees no CUDA device here; use --accelerator cpu, or see `natdeploy doctor`")
    return torch.device("cuda" if available and accelerator != "cpu" else "cpu")


def prepare(config: SearchConfig, progress: Progress, store: RunStore | None = None) -> Setting:
    """Reads images and seed and builds the supernet.

    Args:
        config: what the user asks for.
        progress: is told about the work.
        store: a run that has been here before; its splits and input convention are taken.

    Raises:
        DataError: the images do not do, or are not those the run began with.
        WeightsError: the seed is damaged, of another network, or not the one the run began with.
        UsageError: no seed is given, or the space is unknown.
    """
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    device = choose_device(config.accelerator)
    if config.seed_weights is None:
        raise UsageError(
            "a pretrained network is needed: give --seed-weights FILE (`natdeploy supernet info` shows what a file is)"
        )
    asked = get_space(config.space) if store is None else _named_space(config, store)
    shaped(asked, config)  # refuses an output stride that is none before anything is read
    seed, space = read_for(config.seed_weights, asked)
    if store is not None and seed.sha256 != store.get("seed_sha256"):
        raise WeightsError(f"{config.seed_weights} is not the file this run began with; restore it or start a new run")
    task = open_task(config, narrowed(asked, config), progress, device, store)
    space = shaped(narrowed(space, config), config, task.aspect)
    if store is None:
        convention = choose_input(seed, task.photos(CONVENTION_IMAGES, max(space.resolutions)))
    else:
        convention = stored_convention(store)
    task = task.with_input(convention.mean, convention.std)
    generator = torch.Generator().manual_seed(config.seed)
    supernet, report = make_supernet(seed, space, len(task.classes), convention.padding, generator, rules=config.remap)
    supernet = supernet.to(device).to(memory_format=torch.channels_last)
    return Setting(space, seed, convention, report, supernet, task, device)


def read_for(path: Path, space: SearchSpace) -> tuple[Seed, SearchSpace]:
    """A seed, and the space for its supernet: the one given, at the seed's width, and with the seed's own channels if it is of it.

    A dense head of the seed is not part of that space.

    Raises:
        WeightsError: the file is damaged, or holds no network of any space that is known.
    """
    try:
        seed = read_seed(path, space)
    except WeightsError as error:
        try:
            seed = read_seed(path)
        except WeightsError:
            raise error from None
        return seed, space.restrict(widths=(seed.arch.width,))
    return seed, plain_space(seed.space)


def narrowed(space: SearchSpace, config: SearchConfig) -> SearchSpace:
    """A space with those of the asked-for resolutions that it has.

    Raises:
        UsageError: it has none of them.
    """
    if config.resolutions is None:
        return space
    kept = [each for each in space.resolutions if each in config.resolutions]
    if not kept:
        raise UsageError(
            f"space {space.name} has none of the resolutions {list(config.resolutions)}; it has {list(space.resolutions)}"
        )
    return space.restrict(resolutions=kept)


def shaped(space: SearchSpace, config: SearchConfig, aspect: float = 1.0) -> SearchSpace:
    """A space with what the task of a configuration adds to it: a head, an output stride, and the shape of its input.

    Args:
        space: of backbones.
        config: names the task and its head.
        aspect: width of the images to their height.

    Raises:
        UsageError: no stage of the space ends at the output stride.
    """
    return space if config.head is None else config.head.on(space, aspect)


def as_tabled(space: SearchSpace, config: SearchConfig) -> SearchSpace:
    """A search's space as latency tables have it, whose networks have any resolution."""
    return space if config.resolutions is None else space.restrict(resolutions=get_space(config.space).resolutions)


def make_supernet(
    seed: Seed,
    space: SearchSpace,
    classes: int,
    padding: Padding,
    generator: torch.Generator,
    *,
    rules: RemapRules | None = None,
) -> tuple[Supernet, RemapReport]:
    """The supernet of a space with a seed's weights: those of a supernet of the space as they are, those of a network remapped.

    Raises:
        WeightsError: the seed does not fit the space.
    """
    own = seed.supernet and plain_space(space) == plain_space(seed.space).restrict(resolutions=space.resolutions)
    if space.dense is not None or seed.space.dense is not None or not own:
        supernet = Supernet(
            space,
            classes,
            width=seed.arch.width,
            padding=padding,
            norm_eps=seed.norm_eps,
            kernel_transforms=own and seed.kernel_transforms,
            generator=generator,
        )
        return supernet, _taken(seed, supernet) if own else remap(seed, supernet, rules)
    supernet = supernet_of(replace(seed, padding=padding))
    kept = {name: name for name in seed.state}
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    if classes != seed.classes:
        supernet.reset_classifier(classes, generator)
        new = ("classifier.bias", "classifier.weight")
        unused = tuple(name for name in new if kept.pop(name, None))
    return supernet, RemapReport(kept, (), new, unused)


def _taken(seed: Seed, supernet: Supernet) -> RemapReport:
    """Gives a supernet the weights of one with another head, as they are: those of the stages, and of the same dense head what does
    not depend on its classes.
    """
    state, alike = supernet.state_dict(), same_head(seed.space, supernet.space)
    kept = {
        name: name
        for name, tensor in seed.state.items()
        if name in state and (not name.startswith("classifier.") or (alike and tensor.shape == state[name].shape))
    }
    supernet.load_state_dict({**state, **{name: seed.state[name] for name in kept}})
    new = tuple(sorted(name for name in state if name not in kept and not name.endswith("num_batches_tracked")))
    return RemapReport(kept, (), new, tuple(sorted(set(seed.state) - set(kept))))


def nearest(space: SearchSpace, arch: Arch) -> Arch:
    """The smallest architecture of a space that is nowhere smaller than another one; where it ends, the largest that it has."""
    stages = []
    for stage, layers in zip(space.stages, arch.stages, strict=True):
        depth = min(max(len(layers), stage.min_depth), stage.max_depth)
        wanted = [layers[min(place, len(layers) - 1)] for place in range(depth)]
        stages.append(tuple(Layer(_least(stage.kernels, each.kernel), _least(stage.expansions, each.expansion)) for each in wanted))
    return Arch(arch.resolution, arch.width, tuple(stages))


_Number = TypeVar("_Number", int, float)


def _least(choices: Sequence[_Number], wanted: _Number) -> _Number:
    """The first of ascending choices that is no less, or the last."""
    return next((choice for choice in choices if choice >= wanted), choices[-1])


def _named_space(config: SearchConfig, store: RunStore) -> SearchSpace:
    """The space that a run names, as its file has it.

    Raises:
        UsageError: its file is another one by now.
    """
    space = get_space(config.space)
    if space_toml(space) != store.get("space"):
        raise UsageError(f"space {config.space} is not the one this run began with; restore it or start a new run")
    return space


def stored_space(config: SearchConfig, store: RunStore) -> SearchSpace:
    """The space of a run, as it was asked for, with what its task adds.

    Raises:
        UsageError: its file is another one by now.
    """
    return shaped(_named_space(config, store), config, store.get("aspect") or 1.0)  # older runs saw squares


def stored_convention(store: RunStore) -> InputConvention:
    """How the seed of a run wants its images."""
    stored = store.get("convention")
    return InputConvention(**{**stored, "mean": tuple(stored["mean"]), "std": tuple(stored["std"])})


def stored_task(config: SearchConfig, store: RunStore, progress: Progress | None = None, device: torch.device = _CPU) -> Task:
    """The task of a run, with the splits it began with.

    Raises:
        DataError: the images are not those any more.
    """
    convention = stored_convention(store)
    task = open_task(config, narrowed(get_space(config.space), config), progress or Silent(), device, store)
    return task.with_input(convention.mean, convention.std)
