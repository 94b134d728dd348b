"""Training and judging on a Ray cluster: data-parallel steps through Ray Train, architectures as Ray tasks."""

from __future__ import annotations

import copy
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from natdeploy.distributed import ray_work
from natdeploy.distributed.ray_work import RETRIES, Coordinator, Divergence, Held, Stretch
from natdeploy.errors import MissingRuntimeError, NatdeployError, UsageError
from natdeploy.space import Arch, cost
from natdeploy.supernet import Supernet
from natdeploy.tasks import SplitName, Task
from natdeploy.training.adapt import Adapter, Lesson
from natdeploy.training.judge import Verdict
from natdeploy.training.loop import DivergedError

LOCAL = "local"
"""Address of a cluster that is started on this machine and ends with the engine."""

_POLL_SECONDS = 0.2


class RayEngine:
    """An `Engine` on a Ray cluster.

    What is sent to the cluster is pickled by Ray, code included: it must be one that you trust, and so must be who can reach it.
    natdeploy, torch and Ray have the same versions on all its machines.

    Args:
        address: `local`, `auto` for the cluster that this machine belongs to, or HOST:PORT of its head. A process that is connected
            to a cluster stays with it.
        workers: processes that train together, and that judge; as many as the cluster has room for by default.
        gpus_per_worker: 0 computes on processors; one each by default where the cluster has GPUs.
        threads: of each process, and the processors that it takes.
        report_seconds: how old the last state of a training may become; what a killed worker repeats at most.

    Raises:
        MissingRuntimeError: Ray is not installed.
        NatdeployError: no cluster answers at the address, or it runs other versions.
        UsageError: the cluster has no room for so many workers.
    """

    def __init__(
        self,
        address: str = LOCAL,
        *,
        workers: int | None = None,
        gpus_per_worker: float | None = None,
        threads: int = 1,
        report_seconds: float = 10.0,
    ) -> None:
        self._ray = _import_ray()
        self._started = not self._ray.is_initialized()
        self._tasks: tuple[Task, Held] | None = None
        self._coordinator: Any = None
        self._threads, self._report_seconds = threads, report_seconds
        if self._started:
            self._connect(address, workers)
        try:
            room = self._ray.cluster_resources()
            self._gpus = gpus_per_worker if gpus_per_worker is not None else float("GPU" in room)
            self.workers = fitting_workers(workers, room, self._gpus, threads)
            self._check_versions()
        except BaseException:
            self.close()
            raise

    def _connect(self, address: str, workers: int | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing that we start reports to anyone
        own: dict[str, Any] = {}
        if address == LOCAL:
            own = {"include_dashboard": False, "num_cpus": workers and workers * self._threads}
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise NatdeployError(
                f"no Ray cluster can be used at {address} ({_first_line(error)}); start one with `ray start --head` on its first "
                f"machine, or use {LOCAL}"
            ) from error

    def _check_versions(self) -> None:
        here = ray_work.versions()
        try:
            there = self._ray.get(self._remote(ray_work.versions, cpus=0).remote())
        except self._ray.exceptions.RayError as error:
            raise NatdeployError(
                f"the Ray cluster cannot run natdeploy ({_last_line(error)}); install natdeploy {here['natdeploy']} on all "
                "its machines"
            ) from error
        if other := {name: version for name, version in there.items() if version != here[name]}:
            ours = {name: here[name] for name in other}
            raise NatdeployError(
                f"the Ray cluster runs {_listed(other)} and this machine {_listed(ours)}; install the same versions on both"
            )

    def close(self) -> None:
        """Ends what was started here: a local cluster, or the connection to another, which goes on running."""
        if self._coordinator is not None:
            self._ray.kill(self._coordinator)
        self._tasks = self._coordinator = None
        if self._started and self._ray.is_initialized():
            self._ray.shutdown()

    def train(self, adapter: Adapter, stop: int, lesson: Lesson, after_step: Callable[[], None]) -> None:
        """As `Engine.train`; every worker computes its shards of each batch, and `adapter` is given the states that are reported.

        Raises:
            DivergedError: a loss or a gradient is not finite.
            NatdeployError: workers died again and again.
            UsageError: the shards cannot be dealt out evenly to the workers.
        """
        trainer = adapter.trainer
        if trainer.step >= stop:
            return
        if trainer.settings.shards % self.workers:
            raise UsageError(
                f"{trainer.settings.shards} shards cannot be dealt out evenly to {self.workers} workers; set train.shards to "
                f"{self.workers} or a multiple of it, or use fewer workers"
            )
        assert isinstance(trainer.model, Supernet)
        stretch = Stretch(
            supernet=ray_work.skeleton(trainer.model),
            settings=adapter.settings,
            total_steps=trainer.total_steps,
            seed=adapter.seed,
            lesson={field.name: getattr(lesson, field.name) for field in fields(lesson) if field.name != "task"},
            task=self._stored(lesson.task),
            stop=stop,
            workers=self.workers,
            gpus=self._gpus,
            threads=self._threads,
            report_seconds=self._report_seconds,
        )
        errors = self._ray.exceptions
        for left in reversed(range(RETRIES + 1)):
            try:
                diverged = self._follow(stretch, adapter, after_step)
            except errors.RayError as error:
                if left and isinstance(error, errors.RayActorError):  # the coordinator died, and the state is here
                    continue
                raise NatdeployError(
                    f"training on the Ray cluster failed ({_last_line(error)}); mend the cluster and go on from the last checkpoint"
                ) from error
            if diverged is not None:
                raise DivergedError(*diverged)
            return

    def _follow(self, stretch: Stretch, adapter: Adapter, after_step: Callable[[], None]) -> Divergence | None:
        """Has a stretch trained, and hands `adapter` each state that is posted meanwhile."""
        ray = self._ray
        if self._coordinator is None:  # calls are answered while `train` runs, hence threads
            self._coordinator = ray.remote(Coordinator).options(num_cpus=0, max_concurrency=4).remote()
        coordinator, self._coordinator = self._coordinator, None
        run = coordinator.train.remote(stretch, ray_work.state_of(adapter))
        try:
            ended = False
            while not ended:
                ended = bool(ray.wait([run], timeout=_POLL_SECONDS)[0])
                if (state := ray.get(coordinator.later_than.remote(adapter.trainer.step))) is not None:
                    adapter.load_tensors(*state)
                    after_step()
            diverged: Divergence | None = ray.get(run)
            if diverged is not None:  # its step count may be known already, and its teacher not
                adapter.load_tensors(*ray.get(coordinator.state.remote()))
        except BaseException:
            ray.kill(coordinator)  # and with it those who train
            raise
        self._coordinator = coordinator
        return diverged

    def judge(
        self, supernet: Supernet, archs: Sequence[Arch], task: Task, split: SplitName, limit: int | None = None
    ) -> Iterator[tuple[Arch, Verdict | str]]:
        """As `Engine.judge`, in the order in which they are done. An architecture whose worker dies again and again has failed.

        Each is a call of its own, the most expensive first, so that workers finish at nearly the same time.
        """
        ray = self._ray
        weights = supernet if next(supernet.parameters()).device.type == "cpu" else copy.deepcopy(supernet).cpu()
        held = Held("supernet", ray.put(weights)), self._stored(task)
        macs = cost(supernet.space, archs, supernet.classes).macs
        call, device = self._remote(ray_work.judge_there), "cuda" if self._gpus else "cpu"
        todo = deque(archs[index] for index in (-macs).argsort(kind="stable"))
        waiting: dict[Any, Arch] = {}
        try:
            while todo or waiting:
                while todo and len(waiting) < self.workers:
                    arch = todo.popleft()
                    waiting[call.remote(*held, arch, split, limit, threads=self._threads, device=device)] = arch
                [done], _ = ray.wait(list(waiting), num_returns=1)
                yield waiting.pop(done), self._verdict(done)
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)

    def _verdict(self, reference: Any) -> Verdict | str:
        errors = self._ray.exceptions
        try:
            verdict: Verdict | str = self._ray.get(reference)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError):
            return f"its worker died, {RETRIES + 1} times"
        except errors.RayError as error:
            raise NatdeployError(f"judging on the Ray cluster failed: {_last_line(error)}") from error
        return verdict

    def _remote(self, function: Callable[..., Any], *, cpus: int | None = None) -> Any:
        """A function as a Ray task, with a worker's resources or none."""
        if cpus == 0:
            return self._ray.remote(function).options(num_cpus=0, max_retries=RETRIES)
        return self._ray.remote(function).options(num_cpus=self._threads, num_gpus=self._gpus, max_retries=RETRIES)

    def _stored(self, task: Task) -> Held:
        """A task in the object store, where the last one stays: its images are sent to a machine once."""
        if self._tasks is None or self._tasks[0] is not task:
            self._tasks = (task, Held("task", self._ray.put(task)))
        return self._tasks[1]


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingRuntimeError("Ray is not installed; pip install 'natdeploy[ray]'") from error
    return ray


def fitting_workers(workers: int | None, room: dict[str, float], gpus: float, threads: int) -> int:
    """The number of workers: as asked for, or as many as there is room for.

    Raises:
        UsageError: there is no room.
    """
    fitting = int(room.get("CPU", 0) // threads)
    if gpus:
        fitting = min(fitting, int(room.get("GPU", 0) / gpus))
    wanted = fitting if workers is None else workers
    if not 0 < wanted <= fitting:
        raise UsageError(
            f"{wanted} workers of {threads} processors and {gpus:g} GPUs do not fit into the Ray cluster, which has "
            f"{room.get('CPU', 0):g} processors and {room.get('GPU', 0):g} GPUs; ask for fewer workers or add machines"
        )
    return wanted


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _last_line(error: BaseException) -> str:
    """Ray's errors hold a remote traceback, whose last line says what happened."""
    return str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__


def _listed(versions: dict[str, str]) -> str:
    return " and ".join(f"{name} {version}" for name, version in versions.items())
