"""Checks of a denoiser in training: self-conditioning, gradients, compiled code, checkpoints, averages, resume."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from t2ikit.batch import Batch
from t2ikit.denoisers.base import Denoiser
from t2ikit.diffusion import Denoising
from t2ikit.diffusion.compiled import CompiledObjective
from t2ikit.diffusion.objectives import Draws
from t2ikit.learner import Averages
from t2ikit.testing.base import (
    ROUNDING,
    Check,
    NotApplicable,
    Subject,
    dynamo,
    expect,
    expect_gradients,
    expect_same,
    gradients,
    moved_off_zero,
)
from t2ikit.testing.denoisers import Inputs, output
from t2ikit.testing.trial import trial_text

OBJECTIVE = Denoising(text_drop=0.0)


class Caller:
    """Calls the blocks of a denoiser and counts them."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, block: Callable[..., Any], *args: Any) -> Any:
        """The block's result."""
        self.calls += 1
        return block(*args)


def step(denoiser: Denoiser, rows: int = 4, tokens: int = 5, seed: int = 0) -> tuple[Batch, Draws]:
    """A batch and its random numbers; most rows are self-conditioned, the second is not."""
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, rows, *denoiser.input_shape, generator=generator)
    text = trial_text(denoiser, rows, tokens, seed)
    numbers = torch.zeros(rows, dtype=torch.int64)
    batch = Batch(x0, text, torch.linspace(0.1, 0.9, rows), numbers, numbers)
    return batch, Draws(noise, text, torch.arange(rows) != 1)


def _backward(denoiser: Denoiser, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss [B] of one step, and the gradients."""
    denoiser.zero_grad()
    torch.manual_seed(seed)  # of dropout; the caller keeps the state
    loss_B = OBJECTIVE(denoiser, *step(denoiser, seed=seed)).loss_B
    loss_B.mean().backward()
    return loss_B.detach(), gradients(denoiser)


def self_conditioning(subject: Subject[Denoiser]) -> str:
    """The state of the first pass has no graph, and is the zero state where a row is not kept."""
    denoiser = subject.fresh().eval()
    inputs = Inputs.of(denoiser)
    context = denoiser.encode_text(inputs.text)
    keep = torch.tensor([True, False, True, False])
    state = denoiser.self_condition(inputs.x, inputs.level, context, keep)
    returned = denoiser(inputs.x, inputs.level, context).state
    if state is None and returned is None:
        raise NotApplicable("it has no state")
    expect(
        state is not None and returned is not None,
        "a denoiser whose forward returns a state must return one from self_condition, too, and the reverse: override "
        "self_condition",
    )
    leaves = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
    expect(
        all(not leaf.requires_grad for leaf in leaves),
        "self_condition must build no graph: compute it in `with without_graph(x.device.type)`",
    )
    actual, plain = output(denoiser, inputs, context, state), output(denoiser, inputs, context)
    expect_same(
        actual[~keep],
        plain[~keep],
        "rows that are not kept must get the zero state, which is the same as None",
        ROUNDING,
    )
    expect(
        not torch.equal(actual[keep], plain[keep]),
        "the state of rows that are kept must change their output: let forward read `state`",
    )
    by_index = denoiser.self_condition(inputs.x, inputs.level, context, torch.tensor([0, 2]))
    sentence = "keep as int64 index [R] must give the same as the mask [B]"
    expect_same(output(denoiser, inputs, context, by_index), actual, sentence, ROUNDING)
    return f"state {', '.join(str(list(leaf.shape)) for leaf in leaves)}"


def gradients_everywhere(subject: Subject[Denoiser]) -> str:
    """Every parameter gets a gradient, self-conditioning included."""
    denoiser = subject.fresh().eval()
    _backward(denoiser)
    expect_gradients(
        denoiser,
        "every parameter must get a gradient of the loss: use it in forward or encode_text, or set requires_grad=False",
    )
    trained = [parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad]
    return f"{len(trained)} parameters of {sum(trained):,} numbers"


def initial_weights(subject: Subject[Denoiser]) -> None:
    """``reset_parameters`` initialises everything, as after construction on the meta device."""
    denoiser = subject.build()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.fill_(torch.nan)
    denoiser.reset_parameters()
    left = [name for name, parameter in denoiser.named_parameters() if bool(parameter.isnan().any())]
    expect(
        not left,
        f"reset_parameters must initialise every parameter, but leaves {', '.join(left[:6])}: initialise those in "
        "_reset_own, or give their layer a reset_parameters",
    )


def checkpointed_blocks(subject: Subject[Denoiser]) -> str:
    """``checkpoint_blocks`` computes blocks again in the backward pass: the same loss and gradients."""
    denoiser, caller = subject.fresh().train(), Caller()
    denoiser.checkpoint_blocks = False
    expected = _backward(denoiser)
    denoiser = subject.fresh().train()
    denoiser.checkpoint_blocks = True
    with denoiser.called_by(caller):
        denoiser.zero_grad()
        torch.manual_seed(0)
        loss_B = OBJECTIVE(denoiser, *step(denoiser)).loss_B
        once = caller.calls
        if once == 0:
            raise NotApplicable("it calls no block by self._run, so checkpoint_blocks has nothing to act on")
        loss_B.mean().backward()
    expect(
        caller.calls > once,
        "with checkpoint_blocks the blocks must be computed again in the backward pass: call them by self._run",
    )
    sentence = (
        "checkpoint_blocks must change neither loss nor gradients: a block must give the same when it is computed "
        "again (name random=True to self._run where it takes random numbers)"
    )
    expect_same((loss_B.detach(), gradients(denoiser)), expected, sentence, ROUNDING)
    return f"{caller.calls - once} calls again"


def compiled_whole(subject: Subject[Denoiser]) -> str:
    """The loss is one graph a shape, with the same numbers."""
    graphs = _compiled(subject, {"backend": "eager"}, (3, 5, 3))
    sentence = "one graph a shape was expected, 2 for two text lengths"
    expect(graphs == 2, f"{sentence}; torch.compile made {graphs}: let no Python number change from call to call")
    return "1 graph a shape"


def compiled_blocks(subject: Subject[Denoiser]) -> str:
    """Its blocks alone are compiled, with the same numbers."""
    denoiser, caller = subject.fresh().eval(), Caller()
    with denoiser.called_by(caller):
        output(denoiser, Inputs.of(denoiser))
    if caller.calls == 0:
        raise NotApplicable("it calls no block by self._run or self._call")
    return f"{_compiled(subject, {'backend': 'eager', 'blocks': True}, (3, 3))} graphs"


def _compiled(subject: Subject[Denoiser], options: dict[str, Any], lengths: Sequence[int]) -> int:
    """How many graphs became of texts of these lengths; losses and gradients are compared."""
    denoiser, compiled = subject.fresh().eval(), CompiledObjective(OBJECTIVE, options)
    with dynamo() as counters:
        for tokens in lengths:
            given, results = step(denoiser, 10, tokens), []
            for objective in (OBJECTIVE, compiled):
                denoiser.zero_grad()
                loss_B = objective(denoiser, *given).loss_B
                loss_B.mean().backward()
                results.append((loss_B.detach(), gradients(denoiser)))
            expect_same(results[1], results[0], "compiled code must give the same loss and gradients", ROUNDING)
        breaks = sum(counters["graph_break"].values())
        expect(breaks == 0, f"no graph break was expected, there were {breaks}")
        return int(counters["stats"]["unique_graphs"])


def copies(subject: Subject[Denoiser]) -> None:
    """A deep copy gives the same and shares nothing."""
    denoiser = subject.fresh().eval()
    inputs = Inputs.of(denoiser)
    expected, twin = output(denoiser, inputs), copy.deepcopy(denoiser)
    expect_same(output(twin, inputs), expected, "a deep copy must give the same output")
    moved_off_zero(twin, 5)
    sentence = "a deep copy must be a network of its own, but a change of its weights changed the original"
    expect_same(output(denoiser, inputs), expected, sentence)


def state_dict(subject: Subject[Denoiser]) -> None:
    """The state of one makes another the same."""
    denoiser, other = subject.fresh().eval(), subject.fresh(seed=1).eval()
    inputs = Inputs.of(denoiser)
    other.load_state_dict(denoiser.state_dict())
    expect_same(
        output(other, inputs),
        output(denoiser, inputs),
        "another instance with the same state_dict must give the same output: register what is random at construction "
        "as a parameter or a buffer",
    )


def averages(subject: Subject[Denoiser]) -> None:
    """EMA weights take effect, and the raw ones come back bit for bit."""
    denoiser, twin = subject.fresh().eval(), subject.fresh(seed=1).eval()
    kept, inputs = Averages(denoiser, [0.5], warmup=False), Inputs.of(denoiser)
    output(denoiser, inputs)
    moved_off_zero(denoiser, 3)
    kept.update()
    weights = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    expected = output(denoiser, inputs)
    with kept.applied():
        twin.load_state_dict(denoiser.state_dict())
        sentence = (
            "averaged weights must act at once, but the output is not that of a network with these weights: keep "
            "nothing that was computed from weights"
        )
        expect_same(output(denoiser, inputs), output(twin, inputs), sentence)
    expect_same(dict(denoiser.state_dict()), weights, "after the averages, the raw weights must be back bit for bit")
    expect_same(output(denoiser, inputs), expected, "after the averages, the output must be as before, bit for bit")


def resume(subject: Subject[Denoiser]) -> None:
    """Two steps, a file, and two steps in a fresh network are four steps, bit for bit."""

    def optimizer_of(denoiser: Denoiser) -> torch.optim.Optimizer:
        trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-3)

    def train(denoiser: Denoiser, optimizer: torch.optim.Optimizer, first: int) -> list[Tensor]:
        losses = []
        for index in (first, first + 1):
            losses.append(_backward(denoiser, seed=index)[0])
            optimizer.step()
        return losses

    denoiser = subject.fresh().train()
    optimizer = optimizer_of(denoiser)
    train(denoiser, optimizer, 0)
    file = io.BytesIO()
    torch.save({"denoiser": denoiser.state_dict(), "optimizer": optimizer.state_dict()}, file)
    undisturbed = train(denoiser, optimizer, 2)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = subject.fresh(seed=1).train()
    other.load_state_dict(saved["denoiser"])
    optimizer = optimizer_of(other)
    optimizer.load_state_dict(saved["optimizer"])
    sentence = (
        "a resumed training must equal an undisturbed one bit for bit: what a step changes must be in the state_dict, "
        "as a buffer"
    )
    expect_same(train(other, optimizer, 2), undisturbed, f"{sentence}; the losses differ")
    expect_same(dict(other.state_dict()), dict(denoiser.state_dict()), f"{sentence}; the weights differ")


CHECKS: tuple[Check[Denoiser], ...] = (
    Check("self-conditioning", self_conditioning),
    Check("gradients", gradients_everywhere),
    Check("reset_parameters", initial_weights),
    Check("checkpointed blocks", checkpointed_blocks),
    Check("compiled whole", compiled_whole),
    Check("compiled blocks", compiled_blocks),
    Check("deep copy", copies),
    Check("state_dict", state_dict),
    Check("averages", averages),
    Check("resume", resume),
)
