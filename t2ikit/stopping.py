"""Signals that ask a run to stop: a handler only notes them, and the run stops where its state is whole.

Before the first step nothing can be lost, and the handler ends the process by raising :class:`Stopped`. From then on
the run looks at ``asked()`` at the end of each step and between the images of a snapshot.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

STATUS = 75
"""Exit status of a run that has stopped and is not finished (EX_TEMPFAIL): the same command with --resume auto goes on.
"""
INTERRUPTED = 130
"""Exit status after a second Ctrl+C, as the shell counts an interrupt."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
AGAIN_SECONDS = 1.0
"""Ctrl+C counts as a second one from here on: a launcher passes the first one on, so that a process gets it twice."""
PATIENCE_SECONDS = 12.0
"""How long a process may take to leave before its first step; then it is ended from another thread."""


class Stopped(SystemExit):
    """The run stops, since a signal asked for it; where nothing catches it, the process ends with ``STATUS``.

    Args:
        reason: the signal.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(STATUS)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Failed(Exception):
    """What a disk, a folder or the system did to a run after its first step: no defect, and no option to change."""


class Diverged(FloatingPointError):
    """A loss, a gradient or a weight is not finite: no defect of the program, and the message says what to do."""


class _State:
    """Of this process.

    Attributes:
        asked: the signal that asked, if any.
        since: when Ctrl+C was pressed first, seconds of the monotonic clock; 0 before.
        at_once: whether no step is made yet.
        process: the process whose handlers these are; one that it forks inherits them.
        forward: sends a signal to the ranks that this process has started.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.since = 0.0
        self.at_once = True
        self.process = os.getpid()
        self.forward: Callable[[int], None] = _nobody


def _nobody(number: int) -> None:
    """No rank was started by this process."""


_state = _State()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Notes SIGTERM, SIGUSR1 and SIGINT inside the block; a SIGINT that the shell had ignored stays so."""
    global _state
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return
    _state = _State()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if number != signal.SIGINT or handler is not signal.SIG_IGN:
            signal.signal(number, _note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _state = _State()


def asked() -> signal.Signals | None:
    """The signal that asked this process to stop; None if there was none."""
    return _state.asked


def before_first_step() -> None:
    """From here on a signal ends the process at once; one that came before does so now.

    Raises:
        Stopped: a signal has come.
    """
    _state.at_once = True
    if _state.asked is not None:
        raise Stopped(_state.asked.name)


def step_by_step() -> None:
    """From here on a signal is noted, and the run stops at the end of a step."""
    _state.at_once = False


def own(forward: Callable[[int], None] | None = None) -> None:
    """Makes the handlers those of this process, also of one that was forked.

    Args:
        forward: sends a signal to the ranks that this process has started; None if it has started none.
    """
    _state.process = os.getpid()
    _state.forward = forward or _nobody


def ask() -> None:
    """Asks this process to stop from another of its threads, as SIGTERM does; nothing where none is handled."""
    _thread.interrupt_main(signal.SIGTERM)
    threading.Thread(target=_leave, args=(_state,), daemon=True).start()


@functools.cache
def say_launcher_gone() -> None:
    """Says once why this rank stops: torchrun was killed, which passes no signal on."""
    rank = os.environ.get("RANK", "0")
    print(f"\nrank {rank}: torchrun is gone; its ranks stop", file=sys.stderr, flush=True)


def _note(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.process:
        _of_child(number)
        return
    if number == signal.SIGINT:
        now = time.monotonic()
        if _state.since and now - _state.since >= AGAIN_SECONDS:
            _end_at_once()
        _state.since = _state.since or now
    first = _state.asked is None
    _state.asked = _state.asked or signal.Signals(number)
    with contextlib.suppress(OSError):
        _state.forward(number)
    if first and _state.at_once:  # the main thread may wait inside a library for a rank that is gone
        threading.Thread(target=_leave, args=(_state,), daemon=True).start()
        raise Stopped(_state.asked.name)
    if first and number == signal.SIGINT and os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, b"\nThe run stops at the end of this step; Ctrl+C again ends it at once.\n")


def _of_child(number: int) -> None:
    """A process that was forked, such as a loader's: what a whole process group gets is for the run to decide."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    elif number == signal.SIGINT:
        raise KeyboardInterrupt


def _end_at_once() -> None:
    with contextlib.suppress(OSError):
        _state.forward(signal.SIGKILL)
    os.write(2, b"\ninterrupted twice: ended at once; every file that was whole is whole\n")
    os._exit(INTERRUPTED)


def _leave(state: _State) -> None:
    """Ends a process that has not left in time; what it was writing gets its name only when it is whole."""
    time.sleep(PATIENCE_SECONDS)
    if state is _state and state.at_once:
        os.write(2, b"Stopped before the first step.\n")
        os._exit(STATUS)


def only_by_parent(_: int = 0) -> None:
    """Has a worker process end by SIGTERM of its parent alone: one to the whole group is for the parent to decide.

    Otherwise the worker would be gone in the middle of a step, and the parent could not end that step. A worker whose
    parent is gone ends by itself.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
