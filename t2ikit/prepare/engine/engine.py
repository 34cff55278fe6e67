"""Long work on one CPU, on the GPUs of a machine or on a cluster: Lightning's ``trainer.predict``, shard by shard.

A step describes what it computes as a ``Work``: items in a fixed order, each loaded in a loader process, batches of
them turned into results on the device. Where no device is needed, loader processes write whole shards (``HostWork``).
``run_work`` deals out the unfinished shards (``shards.py``) to the processes that Lightning's launchers start. Every
batch lies within one shard, so the results do not depend on the number of processes. A call that is killed, at whatever
moment, loses the shards that were not finished; the next call continues with those.

Lightning starts the other processes of a machine by running the command again: every process must take the same steps,
and only the chief of the results uses them.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerStatus

from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.engine.loading import Batch, Batches, Loading
from t2ikit.prepare.engine.progress import Progress
from t2ikit.prepare.engine.shards import Ledger, Results
from t2ikit.prepare.engine.work import Work

_START_METHODS = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_fork": "fork"}
_PATIENCE = timedelta(days=30)  # the others wait for the chief, which may write for hours


def run_work(
    work: Work,
    folder: Path,
    launch: Launch,
    label: str,
    unit: str = "img",
    shard_size: int = 1024,
    overwrite: bool = False,
) -> Results:
    """Computes what is missing of a work, and returns all its results.

    Args:
        work: what is computed.
        folder: where the shards are; kept when the call is stopped, for the next one.
        launch: on which devices.
        label, unit: of the progress bar.
        shard_size: items that are written together, the most that a killed process loses; the same in every call.
        overwrite: drop unfinished results of other work.

    Returns:
        The results, the same in every process; the chief uses them, and all processes call ``discard``.

    Raises:
        FileExistsError: the folder holds unfinished results of other work.
        Locked: another call works there.
        KeyboardInterrupt: the user stopped it.

    Example:
        >>> results = run_work(work, out / ".captions.work", Launch(devices=2), "captions")  # doctest: +SKIP
        >>> if results.chief:
        ...     write_lines(path, (result.decode() for result in results))
        >>> results.discard()
    """
    ledger = Ledger(folder, work.identity, len(work), shard_size)
    if not overwrite:
        ledger.check_owner()
    _follow_parent()
    with _quiet():
        run = _Run(work, ledger, launch)
        trainer = _trainer(launch, [_Writer(ledger, label, unit)])
        try:
            trainer.predict(run, return_predictions=False)
            if trainer.is_global_zero:
                ledger.hold()  # a rank that was spawned had the lock, and has ended
        except BaseException as error:
            ledger.release()
            # What Lightning makes of Ctrl+C.
            if isinstance(error, SystemExit) and trainer.state.status == TrainerStatus.INTERRUPTED and error.code == 1:
                raise KeyboardInterrupt from error
            raise
        return _Shared(ledger, trainer)


class _Shared(Results):
    """Results of one or several processes, the first of which is the chief."""

    def __init__(self, ledger: Ledger, trainer: Trainer) -> None:
        super().__init__(ledger, trainer.is_global_zero)
        self._trainer = trainer

    def discard(self) -> None:
        super().discard()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            try:
                self._trainer.strategy.barrier("discard")
            except RuntimeError as error:  # the chief is gone: it has said why
                raise SystemExit(1) from error


class _Run(LightningModule):
    """The work as Lightning sees it: no weights of its own, batches that come as they are."""

    def __init__(self, work: Work, ledger: Ledger, launch: Launch) -> None:
        super().__init__()
        self.work = work
        self.ledger = ledger
        self.launch = launch
        self.mine: list[int] = []

    def setup(self, stage: str) -> None:
        """Shares out the unfinished shards: each process verifies some, the chief deals out those that are left."""
        strategy, rank, world = self.trainer.strategy, self.trainer.global_rank, self.trainer.world_size
        if rank == 0:
            self.ledger.open()
        strategy.barrier("open")
        for shard in self.ledger.finished()[rank::world]:
            self.ledger.verify(shard)
        strategy.barrier("verified")
        done = set(self.ledger.finished())
        left = strategy.broadcast([shard for shard in range(self.ledger.shards) if shard not in done])
        self.mine = left[rank::world]

    def predict_dataloader(self) -> Batches:
        """Not a ``DataLoader``, which Lightning would rebuild with another sampler."""
        return Batches(Loading(self.work, self.ledger, self.mine, self.launch.batch_size), self.launch.workers)

    def on_predict_start(self) -> None:
        if self.mine:
            self.work.setup(self.device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Left to ``compute``, which knows what an item is."""
        return batch

    def predict_step(self, batch: Batch, batch_idx: int) -> Sequence[Any]:
        if batch.failure is not None:
            raise batch.failure
        if batch.written:
            return []
        if batch.indices.start == self.ledger.range(batch.shard).start:
            self.work.begin_shard()
        results = self.work.compute(batch.items)
        if len(results) != len(batch.items):
            raise ValueError(f"{type(self.work).__name__} made {len(results)} results of {len(batch.items)} items")
        return results


class _Writer(Callback):
    """Writes the results of a shard while the next one is computed; shards of host work are only counted."""

    def __init__(self, ledger: Ledger, label: str, unit: str) -> None:
        self.ledger = ledger
        self.label = label
        self.unit = unit
        self._results: list[Any] = []
        self._shards = 0
        self._pending: Future[None] | None = None
        self._progress: Progress | None = None
        self._thread: ThreadPoolExecutor | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, _Run)
        self._thread = ThreadPoolExecutor(1)
        shown = trainer.is_global_zero and len(pl_module.mine) > 0
        self._progress = Progress(self.ledger, self.label, self.unit, shown, trainer.world_size)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, _Run) and self._thread is not None and self._progress is not None
        if trainer.received_sigterm:  # Lightning only notes it
            raise SystemExit(128 + signal.SIGTERM)
        self._results += outputs
        self._progress.add(len(batch.indices))
        if batch.indices.stop < self.ledger.range(batch.shard).stop:
            return
        if batch.written:
            self._progress.shard_written(0)
        else:
            self._settle()
            results, self._results = self._results, []
            self._pending = self._thread.submit(self._write, pl_module.work, batch.shard, results)
        self._shards += 1
        # Loaders that make whole shards make several at a time: the first one does not show their rate.
        if self._shards == (max(1, pl_module.launch.workers) if batch.written else 1):
            self._progress.estimate()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._settle()
        trainer.strategy.barrier("computed")
        self._close(complete=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close(complete=False)

    def _write(self, work: Work, shard: int, results: list[Any]) -> None:
        finished = work.finish(results)
        self.ledger.write(shard, finished, work.facts(finished))

    def _settle(self) -> None:
        """Waits for the shard that is being written: at most one is in memory beside the one that is computed."""
        if self._pending is not None and self._progress is not None:
            self._pending.result()
            self._pending = None
            self._progress.shard_written(len(self._results))

    def _close(self, complete: bool) -> None:
        if self._progress is not None:
            self._progress.close(complete)
        if self._thread is not None:
            self._thread.shutdown()


def _trainer(launch: Launch, callbacks: list[Callback]) -> Trainer:
    """A trainer that only predicts.

    Processes talk by gloo: there is nothing to exchange but who does what, and a process that is gone is noticed.
    """
    strategy: str | Strategy = launch.strategy
    if strategy == "auto":
        strategy = "ddp" if isinstance(_new_trainer(launch, "auto", []).strategy, DDPStrategy) else "auto"
    if strategy in _START_METHODS:
        method: Any = _START_METHODS[strategy]
        strategy = DDPStrategy(process_group_backend="gloo", timeout=_PATIENCE, start_method=method)
    return _new_trainer(launch, strategy, callbacks)


def _new_trainer(launch: Launch, strategy: str | Strategy, callbacks: list[Callback]) -> Trainer:
    try:
        return Trainer(
            accelerator=launch.accelerator,
            devices=launch.devices,
            num_nodes=launch.num_nodes,
            strategy=strategy,
            # A requeued job would look for a checkpoint of a training; here the shards take its place.
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{error} (--accelerator {launch.accelerator} --devices {launch.devices} --num-nodes {launch.num_nodes} "
            f"--strategy {launch.strategy})"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning prints about a training: devices, tips, loggers."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # --workers is the user's choice
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_following: list[threading.Thread] = []


def _follow_parent() -> None:
    """Ends a process that Lightning started when its parent is gone, which Lightning does not do when it is killed."""
    if os.environ.get("LOCAL_RANK", "0") == "0" or _following:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(128 + signal.SIGTERM)

    _following.append(threading.Thread(target=watch, daemon=True, name="parent-observer"))
    _following[0].start()
