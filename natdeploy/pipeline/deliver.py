"""What a finished run gives away: files, measurements, the page."""

from __future__ import annotations

import math
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from natdeploy._version import __version__
from natdeploy.errors import UsageError
from natdeploy.export import Description, Latency, Preprocessing, record_latency, write_bundle
from natdeploy.hardware.bench import NETS, Candidate, MeasureSettings
from natdeploy.hardware.device import Target
from natdeploy.hardware.measure import measure
from natdeploy.hardware.runtimes import get_runtime
from natdeploy.latency.predictor import Quality
from natdeploy.logs import log_to
from natdeploy.pipeline.choice import choose_net, stand_out
from natdeploy.pipeline.config import SearchConfig, target_of
from natdeploy.pipeline.search import LOG, STATISTICS, read_config
from natdeploy.pipeline.setting import stored_convention, stored_space, stored_task
from natdeploy.pipeline.train import CHECKPOINT, TUNED
from natdeploy.progress import Progress, Silent
from natdeploy.report import PageData, Round, net_json, write_page
from natdeploy.search import Choice, parse_constraint
from natdeploy.space import Arch
from natdeploy.store import NetRecord, RunStore
from natdeploy.supernet import Subnet, restore
from natdeploy.training.judge import BATCH

FORMATS = ("onnx",)
PAGE = "report.html"


@dataclass(frozen=True)
class ReportResult:
    """The outcome of a run.

    Attributes:
        page: the HTML page.
        nets: final front and baseline.
        picks: nets that stand out.
        seconds: by stage of the work.
        summary: the same for programs.
    """

    page: Path
    nets: tuple[NetRecord, ...]
    picks: tuple[Choice, ...]
    seconds: Mapping[str, float]
    summary: dict[str, Any]


def load_subnet(store: RunStore, arch: Arch, *, tuned: bool = False) -> Subnet:
    """A final net of a run, with its weights and its BatchNorm statistics, in evaluation mode on the CPU.

    Args:
        store: of the run.
        arch: one of its nets.
        tuned: with the weights that it was trained to alone.

    Raises:
        DamagedFileError: a checkpoint is.
    """
    weights, statistics = store.load_checkpoint(CHECKPOINT), store.load_checkpoint(STATISTICS)
    assert weights is not None and statistics is not None, "a finished run has both"
    supernet = restore(
        _averaged(weights[0]),
        stored_space(read_config(store), store),
        width=arch.width,
        padding=stored_convention(store).padding,
        norm_eps=store.get("norm_eps"),
    )
    subnet = supernet.extract(arch)
    if tuned:
        alone = store.load_checkpoint(f"{TUNED}-{arch.id}")
        assert alone is not None, "a tuned net has its weights in the run"
        subnet.load_state_dict(_averaged(alone[0]))
        return subnet.eval()
    own = {name.removeprefix(f"{arch.id}."): value for name, value in statistics[0].items() if name.startswith(f"{arch.id}.")}
    subnet.load_state_dict({**subnet.state_dict(), **own})
    return subnet.eval()


def _averaged(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("average."): value for name, value in tensors.items() if name.startswith("average.")}


def export(
    folder: Path, arch: str = "knee", formats: Sequence[str] = ("onnx",), progress: Progress | None = None
) -> list[NetRecord]:
    """Writes nets of a run as files, each checked against torch and scored in its runtime on the test images.

    Args:
        folder: of the run.
        arch: `knee`, `best`, `fastest`, `front`, `baseline`, wished-for levels such as `error=5%,latency=1ms`, bounds such as
            `latency<=1ms`, or the beginning of an id.
        formats: of the files.
        progress: is told about every net.

    Raises:
        UsageError: the run is not finished, or a format or net is unknown.
        AccuracyGateError: a file does not compute what the net computes.
    """
    progress = progress or Silent()
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"there is no format {name!r} yet; choose {', '.join(FORMATS)}")
    with RunStore.open(folder) as store, log_to(folder / LOG):
        nets = _select(_finished(store), read_config(store), arch)
        with progress.task("exporting", len(nets), "nets") as advance:
            for net in nets:
                store.put_net(_export(store, net))
                advance(1)
        ids = {(net.role, net.id) for net in nets}
        return [net for net in store.nets() if (net.role, net.id) in ids]


def _export(store: RunStore, net: NetRecord) -> NetRecord:
    config, convention = read_config(store), stored_convention(store)
    arch = Arch.parse(net.arch)
    task = stored_task(config, store)
    test_accuracy = net.final_accuracy
    assert config.seed_weights is not None and test_accuracy is not None
    name = f"models/{net.id}"
    metadata = write_bundle(
        store.folder / name,
        load_subnet(store, arch, tuned=net.tuned_accuracy is not None),
        Description(
            arch=net.arch,
            id=net.id,
            space=config.space,
            params=net.params,
            macs=net.macs,
            labels=tuple(store.get("classes")),
            preprocessing=Preprocessing(
                square_px=task.pixels.size, size_px=arch.resolution, mean=convention.mean, std=convention.std
            ),
            seed=config.seed_weights.name,
            seed_sha256=store.get("seed_sha256"),
            versions={
                "natdeploy": __version__,
                "torch": torch.__version__,
                "onnx": onnx.__version__,
                "onnxruntime": onnxruntime.__version__,
            },
        ),
        test_images=lambda: task.batches("test", arch.resolution, BATCH),
        validation_accuracy=net.validation_accuracy,
        test_accuracy=test_accuracy,
        latency=Latency(target=str(target_of(config)), **_measured(net)),
    )
    (file,) = metadata.files
    return replace(net, runtime_accuracy=file.test_accuracy, parity=file.parity.max_abs, files=(f"{name}/{file.name}",))


def benchmark(
    folder: Path, target: str | None = None, progress: Progress | None = None, settings: MeasureSettings = NETS
) -> list[NetRecord]:
    """Measures every exported net of a run on a target; the seed network is exported and measured beside them.

    Args:
        folder: of the run.
        target: where; the run's own by default.
        progress: is told about every model.
        settings: how long each model is measured.

    Raises:
        UsageError: nothing is exported, or the target is unknown.
        DeviceError: the target failed.
    """
    progress = progress or Silent()
    with RunStore.open(folder) as store, log_to(folder / LOG):
        config = read_config(store)
        chosen = target_of(config, target)
        chosen.device.require_address()
        nets = [net for net in _finished(store) if net.files]
        if not any(net.role == "front" for net in nets):
            raise UsageError(f"nothing of {folder} is exported yet; run `natdeploy export {folder} --arch front` first")
        for net in store.nets():
            if net.role == "baseline" and not net.files:
                store.put_net(_export(store, net))
        nets = [net for net in store.nets() if net.files]
        with tempfile.TemporaryDirectory() as converted:
            candidates = [_candidate(store, net, chosen, Path(converted)) for net in nets]
            reference = next(each for net, each in zip(nets, candidates, strict=True) if net.role == "baseline")
            if any(candidate.model.parent == Path(converted) for candidate in candidates):
                progress.note(f"the run's files are ONNX in fp32; for {chosen} the same nets were converted, to be timed")
            result = measure(candidates, reference, chosen, settings, seed=config.seed, progress=progress)
        store.set(f"measured on {chosen}", asdict(result))
        if str(chosen) != str(target_of(config)):
            progress.note(f"the run was searched for {target_of(config)}; its predictions do not apply to {chosen}")
        measured = []
        for net in nets:
            found = result[f"{net.role}-{net.id}"]
            timed = replace(
                net, measured_p50_ms=found.p50_ms, measured_p90_ms=found.p90_ms, measured_n=found.n, unstable=found.unstable
            )
            own = str(chosen) == str(target_of(config))
            measured.append(timed if own else replace(timed, predicted_ms=None, estimated=False))
            mean_ms = found.mean_ms if found.p50_ms is None else None
            latency = Latency(target=str(chosen), measured_mean_ms=mean_ms, **_measured(measured[-1]))
            record_latency((folder / net.files[0]).parent, latency)
        means = [f"{each.id} {each.mean_ms:.3f} ms" for each in result.measurements if each.p50_ms is None]
        if means:
            progress.note(f"{result.environment['harness']} tells no median; the means are {', '.join(means)}")
        if str(chosen) == str(target_of(config)):
            for net in measured:
                store.put_net(net)
            limit_ms = _latency_limit_ms(config)
            over = [net.id for net in measured if net.role == "front" and result[f"front-{net.id}"].typical_ms > limit_ms]
            if over:
                expected = "estimated" if store.get("estimate") else "predicted"
                progress.note(f"measured above the limit of {limit_ms:g} ms, though {expected} below it: {', '.join(over)}")
        return measured


def _candidate(store: RunStore, net: NetRecord, target: Target, folder: Path) -> Candidate:
    """The exported file where the target reads it; else one of the same subnet for the target's runtime and precision."""
    arch, runtime = Arch.parse(net.arch), get_runtime(target.runtime)
    shape = (1, 3, arch.resolution, arch.resolution)
    path = store.folder / net.files[0]
    if path.suffix != runtime.SUFFIX or target.precision != "fp32":
        path = folder / f"{net.role}-{net.id}{runtime.SUFFIX}"
        runtime.convert(
            load_subnet(store, arch, tuned=net.tuned_accuracy is not None),
            torch.zeros(shape),
            path,
            precision=target.precision,
            dynamic_size=False,
        )
    return Candidate(f"{net.role}-{net.id}", path, shape)


def _measured(net: NetRecord) -> dict[str, Any]:
    names = ("predicted_ms", "measured_p50_ms", "measured_p90_ms", "measured_n", "unstable", "estimated")
    return {name: getattr(net, name) for name in names}


def report(folder: Path) -> ReportResult:
    """Writes the page of a run, and says what it says.

    Raises:
        UsageError: the run is not finished.
    """
    with RunStore.open(folder) as store:
        nets = _finished(store)
        config = read_config(store)
        picks = stand_out(nets, config)
        known = store.get("quality")
        quality = None if known is None else Quality(**known)
        rounds = [Round.from_facts(facts) for facts in store.rounds()]
        limit_ms = _latency_limit_ms(config)
        data = PageData(
            title=folder.resolve().name,
            command=shlex.join(store.get("command")),
            target=str(target_of(config)),
            version=__version__,
            utc=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            nets=nets,
            picks=picks,
            constraints=config.constraints,
            latency_limit_ms=limit_ms if math.isfinite(limit_ms) else None,
            rounds=rounds,
            quality=quality,
            estimate=store.get("estimate"),
            seconds=store.seconds(),
            data={"folder": str(config.data), "classes": ", ".join(store.get("classes")), "fingerprint": store.get("fingerprint")},
            splits={name: len(paths) for name, paths in store.get("splits").items()},
            settings={**store.get("plan"), **{name: str(value) for name, value in config if name not in ("nat", "adapt")}},
            environment={name: str(value) for name, value in store.get("environment").items()},
        )
        write_page(folder / PAGE, data)
        summary = {
            "run": str(folder),
            "page": str(folder / PAGE),
            "target": data.target,
            "nets": [net_json(net, picks) for net in nets],
            "predictor_quality": known,
            "estimate": store.get("estimate"),
            "seconds": data.seconds,
        }
        return ReportResult(folder / PAGE, nets, picks, data.seconds, summary)


def _finished(store: RunStore) -> tuple[NetRecord, ...]:
    if not store.get("finished"):
        raise UsageError(f"the search in {store.folder} is not finished; go on with `natdeploy resume {store.folder}`")
    return tuple(store.nets())


def _latency_limit_ms(config: SearchConfig) -> float:
    """The tightest bound on latency; infinite where there is none."""
    constraints = map(parse_constraint, config.constraints)
    return min((each.bound for each in constraints if each.objective == "latency"), default=math.inf)


def _select(nets: Sequence[NetRecord], config: SearchConfig, which: str) -> list[NetRecord]:
    if which in ("front", "baseline"):
        return [net for net in nets if net.role == which]
    chosen = choose_net(nets, config, which).id
    return [net for net in nets if net.role == "front" and net.id == chosen]


def nets(folder: Path) -> list[NetRecord]:
    """The final front and the baseline of a finished run.

    Raises:
        UsageError: there is no run, or it is not finished.
    """
    with RunStore.open(folder) as store:
        return list(_finished(store))
