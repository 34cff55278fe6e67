"""The processes that Lightning starts for the other ranks of a machine: signals reach all, none outlives another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher

from t2ikit import stopping
from t2ikit.run.folder import FOLDER_VARIABLE

GRACE_SECONDS = 10.0
"""For an error of the remaining ranks to be said, before they are ended."""


class WatchedRanks(_SubprocessScriptLauncher):
    """Starts a process for each further rank of this machine, as Lightning's does, and says which one died."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._said: set[int] = set()

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            stopping.own(self._forward)
            self._call_children_scripts()
            threading.Thread(target=self._watch, daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def wait(self, kill: bool) -> None:
        """Waits some seconds until the other ranks have left; ends what has not by then, with ``kill``."""
        until = time.monotonic() + GRACE_SECONDS
        for process in self.procs:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                if kill:
                    process.kill()

    def say_dead(self) -> None:
        """Says which ranks are gone, where this one fails because of them."""
        time.sleep(1.0)  # for the other thread, which may see it as well
        for rank, process in enumerate(self.procs, start=1):
            if rank not in self._said and process.poll() not in (None, 0, stopping.STATUS):
                say_dead(f"rank {rank} of this machine", process.returncode)

    def _forward(self, number: int) -> None:
        self.kill(signal.Signals(number))

    def _watch(self) -> None:
        running = dict(enumerate(self.procs, start=1))
        while running:
            time.sleep(0.5)
            for rank, process in list(running.items()):
                if process.poll() is not None:
                    self._ended(rank, running.pop(rank))

    def _ended(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        if process.returncode == stopping.STATUS:
            stopping.ask()
        elif process.returncode:
            self._said.add(rank)
            say_dead(f"rank {rank} of this machine", process.returncode)
            time.sleep(GRACE_SECONDS)
            self.kill(signal.SIGKILL)
            os._exit(1)


def prepare_ranks(trainer: Trainer, save: Callable[[BaseException], None]) -> None:
    """Has the ranks of a Trainer stop together and watch each other; those of torchrun or srun do so by themselves.

    Args:
        trainer: before its start.
        save: what a rank that is forked does with an exception that ends it; Lightning asks callbacks in others only.
    """
    strategy: Any = trainer.strategy
    launcher = strategy.launcher
    stopping.own()
    if isinstance(launcher, _SubprocessScriptLauncher):
        strategy._launcher = WatchedRanks(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
    elif isinstance(launcher, _MultiProcessingLauncher):
        work = launcher._wrapping_function

        def of_rank(*args: Any) -> None:
            stopping.own()
            try:
                work(*args)
            except BaseException as error:
                save(error)
                raise

        launcher._wrapping_function = of_rank  # type: ignore[method-assign, assignment]
        stopping.own(lambda number: launcher.kill(signal.Signals(number)))


def wait_for_ranks(trainer: Trainer, kill: bool) -> None:
    """Waits some seconds for the ranks that this process has started, which are about to leave.

    Args:
        trainer: whose fit is over.
        kill: end those that are still there.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, WatchedRanks):
        launcher.wait(kill)


def say_dead_ranks(trainer: Trainer) -> None:
    """Says which of the ranks that this process has started are gone, before an error of its own is raised."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, WatchedRanks):
        launcher.say_dead()


def leave_with_parent(environment: Mapping[str, str] = os.environ) -> None:
    """Has a rank notice that the process which started it is gone; it looks once a second, in a thread.

    One that Lightning started ends, since rank 0 is gone. Those of torchrun stop as SIGTERM stops a run: all are alive,
    and a torchrun that was killed passes no signal on.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in environment
    if not by_torchrun and (FOLDER_VARIABLE not in environment or environment.get("LOCAL_RANK", "0") == "0"):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        if by_torchrun:
            stopping.say_launcher_gone()
            stopping.ask()
            return
        time.sleep(GRACE_SECONDS)
        print("rank 0 of this machine is gone: this rank ends too", file=sys.stderr, flush=True)
        os._exit(stopping.STATUS if stopping.asked() else 1)

    threading.Thread(target=watch, daemon=True).start()


def say_dead(rank: str, status: int) -> None:
    """Says which rank is gone and how it ended, a negative status being a signal."""
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    print(f"\n{rank} {how}: the other ranks end too", file=sys.stderr, flush=True)
