"""What the user asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from natdeploy.hardware.device import Target, parse_target
from natdeploy.pipeline.presets import GRADIENT, PRESETS, SINGLE, Preset, Strategy, merged, published, with_strategy
from natdeploy.search.nat import NatSettings
from natdeploy.space import HEAD_KINDS, HeadKind, HeadSpec, SearchSpace
from natdeploy.space.detectors import finds
from natdeploy.supernet import RemapRules
from natdeploy.tasks import NAMED, Augmentation, BoxAugmentation, MaskAugmentation, TaskName
from natdeploy.training.adapt import AdaptSettings
from natdeploy.training.gradient import GradientSettings

Accelerator = Literal["auto", "cpu", "cuda"]


class Schedule(BaseModel):
    """How much is trained, and when.

    Attributes:
        epochs: passes over the training images, where no budget in minutes is given.
        warmup: share of all steps before the first evaluation.
        final: share of all steps after the last round, with the nets of the front alone.
        final_nets: of them, at most; more share the training, and each gets less of it.
        final_choice: which of them, where there are more: `spread` along the front, or `knee`, `fastest` or `best` and those that
            would be it next. Best is the slowest of those whose error chance does not tell from the least.
        final_leaders: share of them, most accurate first, that lead the last stretch; the others are sampled only.
        final_halvings: how often the better half of the networks that share it goes on alone, before those that are wanted do: it
            begins with twice as many for every halving, of all input sizes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float = Field(default=60.0, gt=0)
    warmup: float = Field(default=0.2, ge=0, le=1)
    final: float = Field(default=0.65, ge=0, le=1)
    final_nets: int = Field(default=24, ge=1)
    final_choice: Literal["spread", "knee", "best", "fastest"] = "spread"
    final_leaders: float = Field(default=1.0, gt=0, le=1)
    final_halvings: int = Field(default=0, ge=0, le=6)

    @model_validator(mode="after")
    def _leaves_rounds(self) -> Schedule:
        if self.warmup + self.final > 1:
            raise ValueError("warmup and final add up to more than 1; lower one of them")
        return self


CHANNELS: Mapping[HeadKind, int] = {"deeplabv3": 256, "lraspp": 128, "ssdlite": 512, "retinanet": 256}
"""Of every branch of a head, as published; of detectors, what `HeadSpec.channels` are."""

DEFAULT_HEADS: Mapping[TaskName, HeadKind] = {"segmentation": "lraspp", "detection": "ssdlite"}


class HeadSettings(BaseModel):
    """The head of a dense task; it is not searched.

    Attributes:
        kind: which (docs/segmentation.md, docs/detection.md).
        channels: of every branch; the published number by default.
        output_stride: at most by so much the stages make the image smaller; the strides behind become dilations. 16 by default, or
            less where the space reaches no more. Detectors read features of several strides, and take every stage's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: HeadKind = "lraspp"
    channels: int | None = Field(default=None, ge=1)
    output_stride: int | None = Field(default=None, ge=1)

    def on(self, space: SearchSpace, aspect: float) -> SearchSpace:
        """A space of backbones with this head, for images of an aspect (width to height).

        Raises:
            UsageError: no stage of the space ends at the output stride.
        """
        spec = HeadSpec(self.kind, self.channels or CHANNELS[self.kind])
        if finds(self.kind):
            return replace(space, dense=spec, output_stride=None, aspect=aspect)
        return replace(space, dense=spec, output_stride=self.output_stride or min(16, space.total_stride), aspect=aspect)

    @model_validator(mode="after")
    def _own_strides(self) -> HeadSettings:
        if finds(self.kind) and self.output_stride is not None:
            raise ValueError(f"head {self.kind} reads features of several strides; leave out the output stride")
        return self


class MaskSettings(BaseModel):
    """Images with masks.

    Attributes:
        height: of decoded images and masks, px, at which networks are judged; that of the first image by default.
        classes: names, in the order of their labels; those of the layout, or of `classes.txt`, by default.
        void: values in masks of pixels that are of no class, besides 255.
        augmentation: how training images are changed, and their masks with them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int | None = Field(default=None, ge=1)
    classes: tuple[str, ...] | None = Field(default=None, min_length=2)
    void: tuple[int, ...] = ()
    augmentation: MaskAugmentation = MaskAugmentation()


class BoxSettings(BaseModel):
    """Images with boxes.

    Attributes:
        images: folder of the images of a COCO file; looked for beside it by default.
        side: of decoded images, squares, px; by default half as much again as the largest input, for crops to have detail.
        augmentation: how training images are changed, and their boxes with them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: Path | None = None
    side: int | None = Field(default=None, ge=16)
    augmentation: BoxAugmentation = BoxAugmentation()


class SearchConfig(BaseModel):
    """One search, whole. It is written to the run folder, and with the same data and machine it gives the same run again.

    Attributes:
        data: image folder, with `train/` and `test/` or one flat folder of classes; or the name of a data set (docs/data.md); or,
            for segmentation, images with masks (docs/segmentation.md); for detection, images with boxes (docs/detection.md).
        out: run folder, created.
        task: what is learned.
        target: device, optionally with runtime: `host`, `host/onnxruntime`.
        precisions: that the search chooses among, for each network, instead of the target's one; the first is the baseline's.
        space: name of a shipped space, or path of a TOML file (docs/spaces.md).
        seed_weights: pretrained network; its width and depths are read from the file.
        constraints: `latency<=1.5ms`, `macs<=100M`, `params<=3M`.
        objectives: minimised together; `error` is always one of them.
        rounds: rounds of search and adaptation; follows from the budget when not given.
        minutes: budget of the whole search on this machine, profiling apart; follows from the data when not given.
        accelerator: where weights are trained.
        threads: CPU threads for training, and for the target's runtime where the target is this machine.
        seed: of every random choice.
        strict: a damaged image is an error instead of being skipped.
        flip: mirrored copies of an image mean the same (not so for digits).
        data_root: where the files of data sets lie that are known by name; a folder of the user's own by default.
        download: whether such files may be fetched if they are missing.
        augmentation: how training images are changed that are classified.
        head: of a dense task; None of classification.
        masks: how masks are read, and training images changed with them.
        boxes: how boxes are read, and training images changed with them.
        tables: folder of latency tables; the user's own by default.
        table: one table to predict latency from, instead of looking for one.
        allow_estimate: where there is no table of the target, take latency from the device's specification sheet. All of it is
            marked. Further targets always need a table.
        strategy: how architectures are chosen (docs/search.md): `evolution`, `gradient` or `random`.
        preset: whose settings count where none is given (docs/search.md): `quick`, `paper` or `thorough`.
        single: the search is for one network, the most accurate that keeps the constraints, and not for a front.
        prefer: aspiration levels such as `error=5%,latency=1ms`; the report names the net of the front that comes nearest.
        resolutions: of the input, px, those of them that the space has; all of its own by default.
        warm_start: folders of finished runs on the same space, whose archives teach the surrogate.
        schedule: how much is trained, and when.
        finetune_minutes: for training the nets that stand out alone, at the end, beside the budget; 0 leaves it out.
        remap: how the seed's layers become larger or smaller ones (docs/remap.md); a supernet of the space is taken as it is.
        nat: the search's settings; sizes that are not given follow from the budget.
        adapt: the adaptation's settings.
        gradient: how the architecture is chosen by gradient.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    out: Path
    task: TaskName = "classification"
    target: str = "host"
    precisions: tuple[str, ...] = ()
    space: str = "mbv2"
    seed_weights: Path | None = None
    constraints: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ("error", "latency")
    rounds: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    accelerator: Accelerator = "auto"
    threads: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    strict: bool = False
    flip: bool = True
    data_root: Path | None = None
    download: bool = False
    augmentation: Augmentation = Augmentation()
    head: HeadSettings | None = None
    masks: MaskSettings = MaskSettings()
    boxes: BoxSettings = BoxSettings()
    tables: Path | None = None
    table: Path | None = None
    allow_estimate: bool = False
    strategy: Strategy = "evolution"
    preset: Preset = "quick"
    single: bool = False
    prefer: str | None = None
    resolutions: tuple[int, ...] | None = None
    warm_start: tuple[Path, ...] = ()
    schedule: Schedule = Schedule()
    finetune_minutes: float = Field(default=0.0, ge=0)
    remap: RemapRules = RemapRules()
    nat: NatSettings = NatSettings()
    adapt: AdaptSettings = AdaptSettings()
    gradient: GradientSettings = GradientSettings()

    @field_validator("precisions", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return tuple(part.strip() for part in given.split(",")) if isinstance(given, str) else given

    @field_validator("precisions")
    @classmethod
    def _distinct(cls, precisions: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(precisions)) < len(precisions):
            raise ValueError("it names a precision twice; name each once")
        return precisions

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        """What is given, over the settings of the preset; a preset that does not exist is left for pydantic to refuse."""
        if not isinstance(given, Mapping):
            return given
        name = given.get("preset", "quick")
        by_gradient = given.get("strategy") == "gradient"
        preset = (GRADIENT if by_gradient else PRESETS).get(name, {})
        data = Path(given.get("data", ""))
        classified = given.get("task", "classification") == "classification"
        if (kind := DEFAULT_HEADS.get(given.get("task", ""))) is not None and not isinstance(given.get("head"), HeadSettings):
            given = {**given, "head": {"kind": kind, **(given.get("head") or {})}}
        known = name == "paper" and classified and not (by_gradient or data.is_dir())
        named = NAMED.get(str(data)) if known else None
        preset = preset if named is None else merged(preset, published(named.recipe))
        return with_strategy(merged(merged(preset, SINGLE) if given.get("single") is True else preset, given))

    @model_validator(mode="after")
    def _head_of_task(self) -> SearchConfig:
        if self.task == "classification" and self.head is not None:
            raise ValueError(
                "task classification has a linear layer for its head; leave out the head, or add --task segmentation or detection"
            )
        if self.head is not None and finds(self.head.kind) != (self.task == "detection"):
            fitting = [kind for kind in HEAD_KINDS if finds(kind) == (self.task == "detection")]
            raise ValueError(f"head {self.head.kind} is not for {self.task}; choose {' or '.join(fitting)}")
        return self

    @model_validator(mode="after")
    def _one_strategy(self) -> SearchConfig:
        if (self.strategy == "random") != (self.nat.propose == "random"):
            raise ValueError(f'nat.propose = "{self.nat.propose}" contradicts strategy {self.strategy}; leave out one of them')
        if self.strategy == "gradient" and self.precisions:
            raise ValueError("strategy gradient chooses among architectures alone; leave out --precision, or take another strategy")
        if self.single and self.strategy == "gradient":
            raise ValueError("strategy gradient ends with one network by itself; leave out --single")
        if self.schedule.final_halvings and (self.strategy == "gradient" or self.precisions):
            raise ValueError(
                "schedule.final_halvings compares architectures of a search that evaluates many, in one precision; leave it (or "
                "--single, which sets it) out, or strategy gradient and --precision"
            )
        return self


def target_of(config: SearchConfig, target: str | None = None, *, precision: str | None = None) -> Target:
    """The target of a search, or another one. This machine's runs on as many threads as the search, another device on its own.

    Args:
        config: of the search.
        target: another one, as a user writes it.
        precision: instead of what the target says; by default, of the search's own target, the first that is searched.
    """
    if target is None and precision is None and config.precisions:
        precision = config.precisions[0]
    found = parse_target(target or config.target, precision=precision)
    if found.device.transport != "local":
        return found
    return parse_target(target or config.target, precision=precision, threads=config.threads)
