"""Whether the device computes what the CPU does: check vectors, float64, eager against compiled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from benchmarks.base import Measurement, Settings, reached
from t2ikit.batch import Text
from t2ikit.checkpoints import from_upstream
from t2ikit.denoisers import CADI, Denoiser, DiTI

LIMIT = 1e-4


def vectors(settings: Settings) -> Iterator[Measurement]:
    """The largest relative error of outputs and states, in fp32 without TF32 and under bf16 autocast."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    path = None if settings.data is None else settings.data / "cadi_tiny.safetensors"
    if path is not None and path.exists():
        yield from _both(settings, "CAD-I against its check vectors", lambda bf16: _check_vectors(settings, path, bf16))
    else:
        print("  no check vectors of CAD-I: give their folder by --data")
    torch.manual_seed(0)
    for name, network in (
        ("CAD-I", CADI(8, 4, 2, 64, 16, 128, 2, 2, 4, 4, text_dim=64, refine_heads=4)),
        ("DiT-I", DiTI(8, 4, 2, 128, 4, 4, text_dim=64)),
    ):
        break_symmetry(network)
        yield from _both(
            settings, f"{name} against float64 on the CPU", lambda bf16, n=network: _doubles(settings, n, bf16)
        )  # type: ignore[misc]


def _both(settings: Settings, what: str, error: Any) -> Iterator[Measurement]:
    fp32 = error(False)
    yield Measurement(f"{what}, fp32", fp32, "", goal=f"at most {LIMIT}", reached=reached(fp32, LIMIT, "at most"))
    yield Measurement(f"{what}, bf16 autocast", error(True), "", note="for information")


def _check_vectors(settings: Settings, path: Path, bf16: bool) -> float:
    from safetensors.torch import load_file

    config = json.loads(path.with_suffix(".json").read_text())["config"]
    data = {name: value.to(settings.device) for name, value in load_file(path).items()}
    network = CADI(
        input_size=config["data_size"],
        data_dim=config["data_dim"],
        num_latents=config["num_latents"],
        latent_dim=config["latents_dim"],
        num_blocks=config["num_blocks"],
        num_layers=config["num_processing_layers"],
        read_write_heads=config["read_write_heads"],
        compute_heads=config["compute_heads"],
        data_mlp_ratio=config["data_mlp_multiplier"],
        text_dim=config["label_dim"],
    )
    network.load_state_dict(from_upstream({n[2:]: v for n, v in data.items() if n.startswith("w.")}), strict=True)
    network.eval().to(settings.device)
    errors = []
    with torch.no_grad(), torch.autocast(settings.device, torch.bfloat16, enabled=bf16):
        context = network.encode_text(Text(data["in.text"], data["in.mask"].bool()))
        for level, state, out in (
            ("gamma", None, "zero_prev"),
            ("gamma", "prev", "prev"),
            ("gamma2", "prev", "prev_gamma2"),
        ):
            prediction = network(
                data["in.x"], data[f"in.{level}"], context, None if state is None else data[f"in.{state}"]
            )
            errors.append(relative_error(prediction.output, data[f"out.{out}.eps"]))
            if f"out.{out}.latents" in data:
                errors.append(relative_error(prediction.state, data[f"out.{out}.latents"]))
    return max(errors)


def _doubles(settings: Settings, network: Denoiser, bf16: bool) -> float:
    """Output of two calls, the second from the state of the first, with masked text."""
    generator = torch.Generator().manual_seed(1)
    rows = 16
    x = torch.randn(rows, *network.input_shape, generator=generator)
    level = torch.rand(rows, generator=generator)
    mask = torch.arange(24) < torch.randint(1, 25, (rows, 1), generator=generator)
    embeddings = torch.randn(rows, 24, network.text_dim, generator=generator)

    def outputs(device: str, dtype: torch.dtype) -> list[Tensor]:
        moved = network.to(device, dtype).eval()
        at: Any = {"device": device, "dtype": dtype}
        context = moved.encode_text(Text(embeddings.to(**at), mask.to(device)))
        first = moved(x.to(**at), level.to(**at), context)
        second = moved(x.to(**at), level.to(**at), context, first.state)
        return [first.output, second.output]

    with torch.no_grad():
        expected = outputs("cpu", torch.float64)
        with torch.autocast(settings.device, torch.bfloat16, enabled=bf16):
            outcome = outputs(settings.device, torch.float32)
    return max(
        relative_error(single, double.to(single.device)) for single, double in zip(outcome, expected, strict=True)
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Relative to the largest number; not finite never passes."""
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())


def break_symmetry(network: nn.Module) -> None:
    """Layers that start at zero get weights, so that every path counts."""
    for parameter in network.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.05)


class Losses(L.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(outputs["step"].loss.mean())


_WHOLE_SECONDS = 20.0
"""What compiling a small network whole takes at least on a card's machine."""


def compiled_losses(settings: Settings) -> Iterator[Measurement]:
    """Runs of 50 steps on shapes, eager and compiled, from the same weights and on the same data."""
    from benchmarks.gpu.experiments import on_device, plan, start
    from benchmarks.gpu.shapes import SHAPES

    steps = 10 if settings.small else 50
    networks: dict[str, Any] = {
        "CAD-I": {},
        "DiT-I": {
            "class_path": "t2ikit.denoisers.DiTI",
            "init_args": {
                "input_size": 16,
                "in_channels": 3,
                "hidden_size": 64,
                "depth": 3,
                "num_heads": 4,
                "text_dim": 64,
            },
        },
    }
    curves: dict[str, Tensor] = {}
    for mode in (None, "blocks", "default"):
        for name, network in networks.items():
            if mode == "default" and settings.left < _WHOLE_SECONDS:
                return  # what stands is not listed as cut off
            kind = {"backend": "aot_eager", "blocks": mode == "blocks"} if mode and settings.small else mode
            values = {
                **on_device(settings),
                **SHAPES,
                "data.length_bucket": 64,  # one length, one graph
                "trainer.max_steps": steps,
                "trainer.precision": "32-true",
                "model.compile": kind,
                **dict.fromkeys(("callbacks.val", "callbacks.geneval", "callbacks.table")),
                **({"model.denoiser": network} if network else {}),
            }
            losses = Losses()
            start(plan("base/shapes_pixels", values), settings.work / "runs" / f"losses-{name}-{mode}", losses)
            curve = torch.stack(losses.values).double().cpu()
            expected = curves.setdefault(name, curve)
            if mode is None:
                continue
            difference = float(((curve - expected).abs() / expected).max())
            what = "blocks compiled" if mode == "blocks" else "compiled"
            yield Measurement(
                f"{name}, loss of {steps} steps in fp32, {what} against eager, largest relative difference",
                difference,
                "",
                goal="at most 0.01",
                reached=reached(difference, 0.01, "at most"),
                note=f"from {expected[0]:.3f} to {expected[-1]:.3f}",
            )
