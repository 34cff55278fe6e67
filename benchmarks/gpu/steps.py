"""Training steps as a user gets them: an experiment of the paper through Trainer, with its callbacks and its loader.

Measured from the start of one batch to the start of the next: waiting for the loader, the copy to the device, passes,
backward pass, clipping, optimizer, EMA, guard and log.
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch

from benchmarks.base import Measurement, Settings, reached
from benchmarks.gpu.experiments import SMALL, latents, on_device, plan, start
from benchmarks.gpu.peak import PEAK
from benchmarks.gpu.timing import Kernels, seconds, short, synchronise
from benchmarks.training import PlainStep, Step
from t2ikit.run.counting import flops

FILES = {"DiT-I": "dit_i_cmall", "CAD-I L": "cad_i_cmall"}
CLASSES = {"DiT-I": "DiTI", "CAD-I L": "CADI"}
ROWS = {256: 128, 512: 32}
TOKENS, RELEASED_TOKENS = 192, 256  # 180 in their bucket; the released program pads to 256
GOALS = {"DiT-I": 0.55}
RECORDS = 3072
NAMES = {None: "eager", "default": "compiled", "blocks": "blocks compiled"}
SHARE = 0.85  # of the memory, for the largest batch: nearer to its end the allocator gives back and asks again
SYNC = "called a synchronizing CUDA operation"  # that the mode is a prototype is said by a warning as well
SCHEDULE = 250_000 * 1024  # images of the paper's schedule at 256 pixels


class Watch(L.Callback):
    """Times steps, then counts host syncs of some, then records the kernels of some, then ends the run.

    Args:
        warm_up: steps before that.
        timed: steps that are timed, fewer if time runs out.
        until: by ``time.monotonic``.
        look: steps whose syncs are counted, and as many whose kernels are recorded; 0 ends with the timing.
    """

    def __init__(self, warm_up: int, timed: int, until: float, look: int) -> None:
        self.warm_up, self.timed, self.until, self.look = warm_up, timed, until, look
        self.first_seconds = self.seconds = 0.0
        self.steps = self.retries = 0
        self.syncs: dict[str, int] = {}
        self.kernels = Kernels() if look else None
        self._caught: Any = None
        self._phase, self._begun, self._started = "warm", 0, time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()
        if self.look:
            self.kernels = Kernels()  # only now is it known whether a GPU is in use

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        done, late = trainer.global_step, time.monotonic() > self.until
        if self._phase == "warm" and done == 1:
            synchronise()
            self.first_seconds = time.perf_counter() - self._started
        if self._phase == "warm" and (done >= self.warm_up or (late and done >= 2)):
            synchronise()
            if torch.cuda.is_initialized():
                torch.cuda.reset_peak_memory_stats()
                self.retries = -_retries()
            self._phase, self._begun, self._started = "timed", done, time.perf_counter()
        elif self._phase == "timed" and (done - self._begun >= self.timed or (late and done - self._begun >= 2)):
            synchronise()
            self.seconds = (time.perf_counter() - self._started) / (done - self._begun)
            self.steps = done - self._begun
            self.retries += _retries()
            self._phase, self._begun = ("syncs" if self.look else "over"), done
            if self.look:
                self._caught = warnings.catch_warnings(record=True)
                self._messages = self._caught.__enter__()
                warnings.simplefilter("always")
                if torch.cuda.is_initialized():
                    torch.cuda.set_sync_debug_mode("warn")
        elif self._phase == "syncs" and done - self._begun >= self.look:
            if torch.cuda.is_initialized():
                torch.cuda.set_sync_debug_mode("default")
            self._caught.__exit__(None, None, None)
            for message in self._messages:
                if SYNC in str(message.message):
                    line = f"{message.filename.split('/')[-1]}:{message.lineno}"
                    self.syncs[line] = self.syncs.get(line, 0) + 1
            self._phase, self._begun = "kernels", done
            assert self.kernels is not None
            self.kernels.start()
        elif self._phase == "kernels" and done - self._begun >= self.look:
            assert self.kernels is not None
            self.kernels.stop()
            self._phase = "over"

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self._phase == "over":
            trainer.should_stop = True


def step(settings: Settings, name: str, pixels: int, mode: str | None) -> Iterator[Measurement]:
    """Images a second, share of the peak, memory, syncs and kernels of an experiment's training step."""
    rows = 10 if settings.small else ROWS[pixels]
    if mode and pixels == 256:
        rows = _rows(settings, name, None) or rows
    yield from _that_fits(settings, name, pixels, mode, rows, 2)


def largest(settings: Settings, name: str) -> Iterator[Measurement]:
    """The same at the largest batch that fits well, by the memory of the usual one; compiled where that was."""
    mode, rows = next(
        ((mode, rows) for mode in ("blocks", None) if (rows := _rows(settings, name, mode))), (None, None)
    )
    if settings.device == "cuda":
        if rows is None:
            network = "dit" if name == "DiT-I" else "cad"
            raise RuntimeError(f"needs the memory of the usual batch: run {network}_eager or {network}_blocks")
        used = settings.measured[f"{_label(name, 256, mode, rows)}, peak memory"]
        kept = _parameters(name, settings) * 20 / 2**30  # weights, gradients, two moments, EMA
        free = torch.cuda.get_device_properties(0).total_memory / 2**30 * SHARE - kept
        rows = int(rows * free / (used - kept)) // 32 * 32
    yield from _that_fits(settings, name, 256, mode, rows or 10, 0)


def _rows(settings: Settings, name: str, mode: str | None) -> int | None:
    """The batch at which the step of a mode was measured."""
    fitting = [rows for rows in range(512, 0, -1) if f"{_label(name, 256, mode, rows)}, step" in settings.measured]
    return fitting[0] if fitting else None


def _that_fits(
    settings: Settings, name: str, pixels: int, mode: str | None, rows: int, look: int
) -> Iterator[Measurement]:
    """Measures with fewer rows where the memory is not enough."""
    while True:
        try:
            yield from _measure(settings, name, pixels, mode, rows, look)
            return
        except torch.OutOfMemoryError:
            print(f"  {_label(name, pixels, mode, rows)}: out of memory", flush=True)
        rows = rows * 3 // 4 // 16 * 16
        if rows == 0:
            raise RuntimeError(f"{name} at {pixels} pixels does not fit into the memory with 16 rows")
        gc.collect()
        torch.cuda.empty_cache()


def _measure(
    settings: Settings, name: str, pixels: int, mode: str | None, rows: int, look: int
) -> Iterator[Measurement]:
    label = _label(name, pixels, mode, rows)
    cost = _flops(name, pixels, settings)
    side = pixels // 8
    root = latents(settings, side, 64 if settings.small else RECORDS)
    values = {
        **on_device(settings),
        "data.root": str(root),
        "data.batch_size": rows,
        "callbacks.samples": None,
        "model.compile": {"backend": "aot_eager", "blocks": mode == "blocks"} if mode and settings.small else mode,
        **_network(name, pixels, settings),
    }
    if settings.small:
        values["data.num_workers"] = 0
    warm_up, timed = (1, 2) if settings.small else (4, 16) if look else (2, 4)
    watch = Watch(warm_up, timed, settings.until - (6 if look else 2), look)
    start(plan(FILES[name], values), settings.work / "runs" / label.replace(" ", "-"), watch)
    rate = rows / watch.seconds
    goal, met = ("", None) if name != "DiT-I" or pixels != 256 else ("at least 645 on an H200", rate >= 645)
    yield Measurement(label, rate, "images/s", "", None, goal, met, f"first step {watch.first_seconds:.1f} s")
    theirs = settings.measured.get(_released_label(RELEASED_TOKENS, rows))
    if theirs and name == "CAD-I L":
        against = f"the released program, {RELEASED_TOKENS} tokens"
        met = reached(rate / theirs, 2.0, "at least")
        yield Measurement(f"{label}, against", rate, "images/s", against, theirs, "at least 2 x", met)
    if mode:
        yield Measurement(f"{label}, first step", watch.first_seconds, "s")
    yield Measurement(f"{label}, step", 1e3 * watch.seconds, "ms", note=f"mean of {watch.steps}")
    yield Measurement(f"{label}, arithmetic", rate * cost / 1e12, "TFLOP/s", note=f"{cost / 1e9:.1f} GFLOP an image")
    if PEAK in settings.measured:
        share = rate * cost / 1e12 / settings.measured[PEAK]
        least = GOALS.get(name)
        goal, met = (f"at least {least}", reached(share, least, "at least")) if least else ("", None)
        yield Measurement(f"{label}, share of the measured peak", share, "", "", None, goal, met)
    if name == "DiT-I" and pixels == 256:
        yield Measurement(f"{label}, the paper's 250,000 steps at this rate", SCHEDULE / rate / 3600, "h")
    if torch.cuda.is_initialized():
        yield Measurement(f"{label}, peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        yield Measurement(f"{label}, times that the allocator gave memory back to ask again", watch.retries, "")
    if not look or watch.kernels is None:
        return
    if torch.cuda.is_initialized():  # nothing counts them on a CPU
        where = ", ".join(f"{line} x {count}" for line, count in watch.syncs.items())
        yield Measurement(f"{label}, host syncs", sum(watch.syncs.values()) / look, "a step", note=where)
    total = sum(watch.kernels.milliseconds.values())
    for kind, spent in watch.kernels.kinds().items():
        yield Measurement(f"{label}, {kind}", spent / look, "ms a step", note=f"{100 * spent / total:.0f} %")
    for kernel, count in list(watch.kernels.of("attention").items())[:8]:
        spent = watch.kernels.milliseconds[kernel] / look
        yield Measurement(f"{label}, attention kernel {short(kernel)}", spent, "ms a step", note=f"{count // look} x")
    for kernel, spent in watch.kernels.milliseconds.most_common(15):
        count = watch.kernels.launches[kernel] // look
        yield Measurement(f"{label}, top: {short(kernel)}", spent / look, "ms a step", note=f"{count} x")


def released(settings: Settings) -> Iterator[Measurement]:
    """CAD-I L as the released program computes it: text padded to 256 and encoded twice, loops over parameters."""
    rows = 10 if settings.small else ROWS[256]
    built = plan("cad_i_cmall", {**on_device(settings), **_network("CAD-I L", 256, settings)})
    denoiser = built.model.build().denoiser.to(settings.device)

    def whole(work: PlainStep) -> None:
        with torch.autocast(settings.device, torch.bfloat16):
            value = work.loss()
        value.backward()
        work.update()

    works = {tokens: PlainStep(denoiser, rows, tokens) for tokens in (RELEASED_TOKENS, TOKENS)}
    spent: dict[int, list[float]] = {tokens: [] for tokens in works}
    for _ in range(1 if settings.small else 3):  # in turns: clocks and memory move both alike
        for tokens, work in works.items():
            repeats, warm_up = (1, 1) if settings.small else (4, 2)
            spent[tokens].append(seconds(lambda: whole(work), settings.until - 3, repeats, warm_up))  # noqa: B023
    for tokens, times in spent.items():
        turns = ", ".join(f"{1e3 * duration:.0f}" for duration in times)
        rate = rows / statistics.median(times)
        yield Measurement(_released_label(tokens, rows), rate, "images/s", note=f"turns of {turns} ms")


def _retries() -> int:
    """How often the allocator has given memory back to the device to ask for more."""
    return int(torch.cuda.memory_stats().get("num_alloc_retries", 0)) if torch.cuda.is_initialized() else 0


def _label(name: str, pixels: int, mode: str | None, rows: int) -> str:
    return f"{name}, {pixels} pixels, B={rows}, {NAMES[mode]}"


def _released_label(tokens: int, rows: int) -> str:
    return f"CAD-I L, released program's step, {tokens} tokens, B={rows}, eager"


def _network(name: str, pixels: int, settings: Settings) -> dict[str, Any]:
    """Options of the denoiser."""
    small = SMALL[CLASSES[name]] if settings.small else {}
    return {f"model.denoiser.{key}": value for key, value in {"input_size": pixels // 8, **small}.items()}


def _denoiser_on_meta(name: str, pixels: int, settings: Settings) -> Any:
    built = plan(FILES[name], _network(name, pixels, settings))
    with torch.device("meta"):
        return built.model.build().denoiser


def _flops(name: str, pixels: int, settings: Settings) -> float:
    """Of a training step, an image; 9 of 10 images are self-conditioned where the network is."""
    return flops(Step(_denoiser_on_meta(name, pixels, settings), 10, TOKENS).backward) / 10


def _parameters(name: str, settings: Settings) -> int:
    return sum(p.numel() for p in _denoiser_on_meta(name, 256, settings).parameters())
