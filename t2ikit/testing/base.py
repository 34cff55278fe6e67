"""A check, its outcome, the report, and what checks of several kinds share.

A check gets a :class:`Subject`, which builds the class anew as often as it likes, and raises ``AssertionError`` with a
sentence that says what was expected, what came and what to change. Everything runs on the CPU.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch._dynamo.utils import counters

Tried = TypeVar("Tried")
Module = TypeVar("Module", bound=nn.Module)
ROUNDING = 1e-5
"""Allowed between two ways of one computation, times the largest number in it where that is above 1."""


class NotApplicable(Exception):
    """The check says nothing about this class; the message gives the reason."""


@dataclass(frozen=True)
class Subject(Generic[Tried]):
    """The class that is tried.

    Attributes:
        build: makes one, with its options.
        arrays: shapes, without their first axis, of the arrays of a record that it reads.
    """

    build: Callable[[], Tried]
    arrays: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def fresh(self, seed: int = 0) -> Tried:
        """A new one; equal seeds give equal weights, moved off zero where it has any."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = self.build()
        if isinstance(made, nn.Module):
            moved_off_zero(made, seed)
        return made


@dataclass(frozen=True)
class Check(Generic[Tried]):
    """One property of a contract.

    Attributes:
        name: what the report calls it.
        function: raises ``AssertionError`` where the property does not hold, ``NotApplicable`` where it says nothing;
            may return a figure for the report.
    """

    name: str
    function: Callable[[Subject[Tried]], str | None]


@dataclass(frozen=True)
class Outcome:
    """What came of one check; ``detail`` is the sentence of a failure, the reason or the figure."""

    name: str
    state: Literal["passed", "failed", "does not apply"]
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """The outcomes of all checks of one class."""

    title: str
    outcomes: tuple[Outcome, ...]

    def of(self, state: str) -> dict[str, str]:
        """Details by name of the checks that ended in this state."""
        return {outcome.name: outcome.detail for outcome in self.outcomes if outcome.state == state}

    @property
    def ok(self) -> bool:
        """Whether at least one check passed and none failed."""
        return bool(self.of("passed")) and not self.of("failed")

    def show(self, console: Console) -> None:
        """Prints the table, and below it every failure with its whole sentence."""
        table = Table(title=escape(self.title), title_justify="left")
        table.add_column("check", no_wrap=True)
        table.add_column("outcome", no_wrap=True)
        table.add_column("")
        colours = {"passed": "green", "failed": "bold red", "does not apply": "yellow"}
        for outcome in self.outcomes:
            state = f"[{colours[outcome.state]}]{outcome.state}[/]"
            table.add_row(outcome.name, state, "see below" if outcome.state == "failed" else escape(outcome.detail))
        console.print(table)
        for name, detail in self.of("failed").items():
            console.print(f"[bold red]{name}[/]: {escape(detail)}", highlight=False, soft_wrap=True)
        counts = ", ".join(f"{len(self.of(state))} {state}" for state in colours if self.of(state))
        console.print(counts if self.of("passed") else f"{counts}: nothing could be tried")


def run_checks(title: str, checks: Sequence[Check[Tried]], subject: Subject[Tried]) -> Report:
    """Runs all checks; one that fails does not stop the others."""
    return Report(title, tuple(_run(check, subject) for check in checks))


def _run(check: Check[Tried], subject: Subject[Tried]) -> Outcome:
    try:
        with torch.random.fork_rng(devices=[]):
            return Outcome(check.name, "passed", check.function(subject) or "")
    except NotApplicable as reason:
        return Outcome(check.name, "does not apply", str(reason))
    except AssertionError as failure:
        return Outcome(check.name, "failed", str(failure) or _located(failure))
    except (Exception, SystemExit) as error:  # one that leaves the process would leave with the status of success
        return Outcome(check.name, "failed", _located(error))


def _located(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"


# ------------------------------------------------------------------ expectations


def expect(condition: bool, sentence: str) -> None:
    """AssertionError with this sentence unless the condition holds."""
    if not condition:
        raise AssertionError(sentence)


def expect_same(actual: Any, expected: Any, sentence: str, tolerance: float = 0.0) -> None:
    """AssertionError with this sentence and the first difference, unless the two agree.

    Args:
        actual: any nesting of tensors, arrays, numbers, dataclasses, mappings and sequences.
        expected: the same.
        sentence: what should agree, and what to change.
        tolerance: 0 asks for equality bit for bit.
    """
    difference = first_difference(actual, expected, tolerance)
    expect(difference is None, f"{sentence} ({difference})")


def first_difference(actual: Any, expected: Any, tolerance: float = 0.0, path: str = "") -> str | None:
    """Where and how the two differ; None where they agree."""
    name = f"{path}: " if path else ""
    if isinstance(actual, np.ndarray) and isinstance(expected, np.ndarray) and actual.dtype != object:
        actual, expected = torch.from_numpy(actual.copy()), torch.from_numpy(expected.copy())
    if type(actual) is not type(expected):
        return f"{name}{type(actual).__name__} instead of {type(expected).__name__}"
    if isinstance(actual, Tensor):
        return _tensor_difference(actual, expected, tolerance, name)
    if is_dataclass(actual):
        pairs = [(item.name, getattr(actual, item.name), getattr(expected, item.name)) for item in fields(actual)]
    elif isinstance(actual, Mapping):
        if list(actual) != list(expected):
            return f"{name}keys {list(actual)} instead of {list(expected)}"
        pairs = [(str(key), actual[key], expected[key]) for key in actual]
    elif isinstance(actual, (list, tuple)):
        if len(actual) != len(expected):
            return f"{name}{len(actual)} entries instead of {len(expected)}"
        pairs = [(str(index), a, b) for index, (a, b) in enumerate(zip(actual, expected, strict=True))]
    elif isinstance(actual, float):
        return first_difference(torch.tensor(actual).double(), torch.tensor(expected).double(), tolerance, path)
    else:
        return None if bool(np.all(actual == expected)) else f"{name}{actual!r} instead of {expected!r}"
    for key, a, b in pairs:
        difference = first_difference(a, b, tolerance, f"{path}.{key}" if path else key)
        if difference is not None:
            return difference
    return None


def _tensor_difference(actual: Tensor, expected: Tensor, tolerance: float, name: str) -> str | None:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return f"{name}{list(actual.shape)} {actual.dtype} instead of {list(expected.shape)} {expected.dtype}"
    if torch.equal(actual, expected):
        return None
    wide, other = actual.detach().double(), expected.detach().double()
    equal = (wide == other) | (wide.isnan() & other.isnan())
    distance = torch.where(equal, 0.0, (wide - other).abs()).nan_to_num(nan=torch.inf).max().item()
    allowed = tolerance * max(1.0, other[other.isfinite()].abs().max().item() if other.isfinite().any() else 1.0)
    return None if distance <= allowed else f"{name}the largest difference is {distance:.2g}, allowed {allowed:.2g}"


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradients of the trainable parameters by name; zeros where there is none."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def expect_gradients(module: nn.Module, sentence: str) -> None:
    """AssertionError that names the trainable parameters whose gradient is missing, zero throughout or not finite."""
    reached = gradients(module)
    bare = [name for name, values in reached.items() if not bool(values.any()) or not bool(values.isfinite().all())]
    more = f" and {len(bare) - 6} more" if len(bare) > 6 else ""
    expect(not bare, f"{sentence}; none, or one that is not finite, reaches {', '.join(bare[:6])}{more}")


def random_state() -> tuple[Any, ...]:
    """The global random state of torch, numpy and Python."""
    return torch.random.get_rng_state(), np.random.get_state(), random.getstate()


@contextmanager
def random_state_kept(what: str) -> Iterator[None]:
    """AssertionError where the block reads or changes the global random state."""
    before = random_state()
    yield
    expect_same(
        random_state(),
        before,
        f"{what} must leave the global random state (torch, numpy, random) alone, but changed it: take random numbers "
        "from t2ikit.rng, keyed by the slot",
    )


@contextmanager
def dynamo() -> Iterator[Mapping[str, Any]]:
    """Fresh compiled code inside the block; the counters of Dynamo. What cannot be one graph is an AssertionError."""
    torch._dynamo.reset()
    counters.clear()
    try:
        yield counters
    except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.TorchRuntimeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise AssertionError(
            f"one graph without breaks was expected (fullgraph), but torch.compile cannot trace it: {reason}; remove "
            "branches and sizes that depend on values, .item(), prints and Python side effects"
        ) from None
    finally:
        torch._dynamo.reset()
        counters.clear()


def moved_off_zero(module: Module, seed: int = 0) -> Module:
    """The same with every floating-point parameter moved by noise, so that layers that start at zero hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.add_((0.05 * torch.randn(parameter.shape, generator=generator)).to(parameter))
    return module
