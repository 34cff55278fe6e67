"""A training step: operations, time against the plain path, time against a peer of the same size."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.base import Benchmark, Measurement, Settings, cpu_seconds, reached
from benchmarks.counting import Operations, operations
from t2ikit.batch import Text
from t2ikit.denoisers import CADI, Denoiser, DiTI
from t2ikit.denoisers.cad_i import cad_i_l, cad_i_s
from t2ikit.diffusion import Denoising, GaussianDiffusion
from t2ikit.optim import LAMB, parameter_groups
from t2ikit.run.counting import flops

CLIP = 2.0
DECAY = 0.9999
RELEASED_OPERATIONS, RELEASED_SYNCS = 11_036, 968
"""One step of the released training code at L, counted in the same way (dispatcher, torch 2.15)."""


class Step:
    """One training step of t2ikit as its module, its clipping, LAMB and EMA make it, on given tensors.

    Args:
        denoiser: the network.
        rows: B.
        tokens: L of the text.
    """

    def __init__(self, denoiser: Denoiser, rows: int, tokens: int) -> None:
        device = next(denoiser.parameters()).device
        self.denoiser = denoiser.train()
        self.process = GaussianDiffusion()
        self.objective = Denoising(self.process)
        generator = None if device.type == "meta" else torch.Generator(device).manual_seed(0)
        normal: Callable[..., Tensor] = torch.randn
        self.x0 = normal(rows, *denoiser.input_shape, generator=generator, device=device)
        self.noise = normal(rows, *denoiser.input_shape, generator=generator, device=device)
        self.t = torch.linspace(0.05, 0.95, rows, device=device)
        embeddings = normal(rows, tokens, denoiser.text_dim, generator=generator, device=device)
        self.text = Text(embeddings, torch.ones(rows, tokens, dtype=torch.bool, device=device))
        self.keep = torch.arange(rows) < max(round(0.9 * rows), 1)
        self.parameters = [p for p in denoiser.parameters() if p.requires_grad]
        self.optimizer = LAMB(parameter_groups(denoiser), lr=1e-3)
        self.averages = [p.detach().clone() for p in self.parameters]

    def loss(self) -> Tensor:
        """Mean loss, forward only."""
        return self.objective.loss(self.denoiser, self.x0, self.noise, self.t, self.text, self.keep).mean()

    def backward(self) -> None:
        """Both passes and the backward pass."""
        self.loss().backward()

    def update(self) -> None:
        """Clipping, LAMB, EMA."""
        nn.utils.clip_grad_norm_(self.parameters, CLIP, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - DECAY)
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self) -> None:
        self.backward()
        self.update()


class PlainStep(Step):
    """The same step by the plain path: text encoded twice, first pass on every sample, loops over the parameters."""

    def __init__(self, denoiser: Denoiser, rows: int, tokens: int) -> None:
        super().__init__(denoiser, rows, tokens)
        self.loop = plain.LoopLAMB(parameter_groups(denoiser))

    def loss(self) -> Tensor:
        return plain.loss(self.denoiser, self.process, self.x0, self.noise, self.t, self.text, self.keep).mean()

    def update(self) -> None:
        if not plain.gradients_are_finite(self.denoiser):
            raise FloatingPointError("a gradient is not finite")
        nn.utils.clip_grad_norm_(self.parameters, CLIP, foreach=False)
        self.loop.step()
        with torch.no_grad():
            plain.update_average(self.averages, self.parameters, DECAY)
        self.loop.zero_grad(set_to_none=True)


def count_operations(build: Callable[[], Denoiser], rows: int = 10, tokens: int = 180) -> Operations:
    """Operations and host syncs of one whole step. They depend on depth and options, not on width."""
    step = Step(build(), rows, tokens)
    step()  # LAMB makes its state
    return operations(step)


def narrow_l() -> CADI:
    """CAD-I with the depth and the options of L, narrow: the same operations."""
    return CADI(data_dim=32, num_latents=16, latent_dim=64, text_dim=64)


def _operations(settings: Settings) -> list[Measurement]:
    counted = count_operations(narrow_l)
    return [
        Measurement(
            "CAD-I L, whole training step",
            counted.total,
            "ops",
            "the released code",
            RELEASED_OPERATIONS,
            "at most 1,500",
            reached(counted.total, 1500, "at most"),
            "fp32, LAMB, EMA and clipping included",
        ),
        Measurement(
            "the same, host syncs",
            counted.syncs,
            "syncs",
            "the released code",
            RELEASED_SYNCS,
            "at most 3",
            reached(counted.syncs, 3, "at most"),
        ),
    ]


def _against_plain(settings: Settings) -> list[Measurement]:
    rows, tokens = (8, 256) if settings.full else (4, 256)
    build = cad_i_l if settings.full else cad_i_s
    denoiser = build(dropout=0.0, drop_path=0.0)
    ours, theirs = Step(denoiser, rows, tokens), PlainStep(denoiser, rows, tokens)
    name = f"CAD-I {'L' if settings.full else 'S'}, B={rows}, T={tokens}, fp32"
    cost = (flops(ours.backward), flops(theirs.backward))
    passes = cpu_seconds({"ours": ours.backward, "plain": theirs.backward}, repeats=3)
    fixed = cpu_seconds({"ours": _with_gradients(ours), "plain": _with_gradients(theirs)}, repeats=3)
    return [
        Measurement(f"{name}, FLOPs of a step", cost[0] / 1e9, "GFLOP", "plain path", cost[1] / 1e9),
        Measurement(f"{name}, both passes and backward", passes["ours"], "s", "plain path", passes["plain"]),
        Measurement(f"{name}, clip + LAMB + EMA", fixed["ours"], "s", "loops over the parameters", fixed["plain"]),
    ]


def _with_gradients(step: Step) -> Callable[[], None]:
    gradients = [torch.full_like(p, 1e-3) for p in step.parameters]

    def work() -> None:
        for parameter, gradient in zip(step.parameters, gradients, strict=True):
            parameter.grad = gradient
        step.update()

    return work


def _against_peer(settings: Settings) -> list[Measurement]:
    """DiT-I against diffusers' PixArt transformer of the same width and depth: forward and backward of one batch."""
    from diffusers import PixArtTransformer2DModel

    depth, rows, tokens = (24 if settings.full else 6), 1, 192
    torch.manual_seed(0)
    ours = DiTI(depth=depth).train()
    peer = PixArtTransformer2DModel(
        num_attention_heads=16,
        attention_head_dim=64,
        in_channels=4,
        out_channels=4,
        num_layers=depth,
        cross_attention_dim=1024,
        caption_channels=2048,
        sample_size=32,
        patch_size=2,
    ).train()
    step = Step(ours, rows, tokens)
    x, mask = step.x0, torch.ones(rows, tokens)
    t = torch.full((rows,), 500)

    def peer_step() -> None:
        kwargs = {"resolution": None, "aspect_ratio": None}
        output = peer(
            x, step.text.embeddings, t, added_cond_kwargs=kwargs, encoder_attention_mask=mask, return_dict=False
        )[0]
        output.square().mean().backward()
        peer.zero_grad(set_to_none=True)

    def our_step() -> None:
        step.backward()
        ours.zero_grad(set_to_none=True)

    name = f"DiT-I, {depth} blocks, B={rows}, T={tokens}, forward and backward"
    against = "diffusers PixArtTransformer2DModel"
    cost = (flops(our_step), flops(peer_step))
    # In user mode: gradients are hundreds of megabytes, and how often the allocator takes them from the system again
    # depends on what ran before.
    seconds = cpu_seconds({"ours": our_step, "peer": peer_step}, repeats=3, clock=lambda: os.times().user)
    note = "the peer has neither text refine blocks nor registers nor QK norm"
    return [
        Measurement(f"{name}, FLOPs", cost[0] / 1e9, "GFLOP", against, cost[1] / 1e9, note=note),
        Measurement(f"{name}, time", seconds["ours"], "s", against, seconds["peer"], note="in user mode"),
        Measurement(
            f"{name}, rate",
            cost[0] / 1e9 / seconds["ours"],
            "GFLOP/s",
            against,
            cost[1] / 1e9 / seconds["peer"],
        ),
    ]


BENCHMARKS = (
    Benchmark("operations", "dispatched operations and host syncs of a training step", _operations),
    Benchmark("training", "a CAD-I training step against the plain path", _against_plain),
    Benchmark("peer", "a DiT-I training step against diffusers' PixArt transformer", _against_peer),
)
