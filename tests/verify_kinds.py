"""Runs ``t2ikit verify-resume`` on every kind of experiment, in tiny sizes, and prints a table of the verdicts.

python tests/verify_kinds.py            all kinds
python tests/verify_kinds.py ranks      those whose name has this word
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tiny

DIT_I = """
extends: [base/shapes_pixels.yaml]
model:
  init_args:
    denoiser:
      class_path: t2ikit.denoisers.DiTI
      init_args: {input_size: 16, in_channels: 3, hidden_size: 32, depth: 2, num_heads: 2, patch_size: 4, text_dim: 64}
data: {init_args: {count: 64, val_count: 16, batch_size: 8}}
trainer: {accelerator: cpu}
"""
CROP = """
extends: [dit_i.yaml]
model: {init_args: {denoiser: {init_args: {window_tokens: true}}}}
callbacks:
  cutmix: null
  crop: {class_path: t2ikit.callbacks.Crop, init_args: {p: 0.5}}
"""
FLOW = """
extends: [dit_i.yaml]
model:
  init_args:
    denoiser: {init_args: {level_kind: t}}
    objective: {init_args: {process: {class_path: t2ikit.diffusion.RectifiedFlow}}}
"""
LATENTS = """
extends: [quickstart.yaml]
model:
  init_args:
    denoiser: {init_args: {data_dim: 16, num_latents: 4, latent_dim: 16, num_blocks: 1, num_layers: 1}}
data: {init_args: {count: 64, val_count: 16, batch_size: 8}}
trainer: {log_every_n_steps: 1}
"""
TERM = """
extends: [tiny.yaml]
model:
  init_args:
    objective:
      init_args:
        terms: {projected: {class_path: projected_term.Projected, init_args: {weight: 0.5, until: 11}}}
"""
STAGES = """
extends: [tiny.yaml]
stages:
  first: {}
  second: {model: {init_args: {start: {checkpoint: stages.first}, trainable: [core]}}}
"""
GROWING = """
extends: [shapes_growing.yaml]
model:
  init_args:
    denoiser:
      init_args:
        core: {width: 32, blocks: 1, heads: 2, noise_width: 16}
        shell: {init_args: {channels: [8], blocks: [1], head_channels: 8}}
data: {init_args: {count: 64, val_count: 16, batch_size: 8}}
trainer: {accelerator: cpu}
stages:
  shallow: {data: {init_args: {count: 64}}}
  thawed: {model: {init_args: {start: {checkpoint: stages.frozen@2}}}}
"""
TWO_RANKS = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
WORKERS = ["--data.num_workers", "2"]
ACCUMULATED = ["--trainer.accumulate_grad_batches", "2"]
FILES = {
    "tiny.yaml": tiny.EXPERIMENT,
    "dit_i.yaml": DIT_I,
    "crop.yaml": CROP,
    "flow.yaml": FLOW,
    "latents.yaml": LATENTS,
    "term.yaml": TERM,
    "stages.yaml": STAGES,
    "growing.yaml": GROWING,
    "projected_term.py": tiny.PROJECTED,
}
# An epoch of the tiny experiments has 8 steps: 18 steps are three epochs, those of "mid-epoch" a part of one.
KINDS: dict[str, list[str]] = {
    "CAD-I, CutMix, across epochs, 0 workers": ["tiny.yaml"],
    "CAD-I, mid-epoch": ["tiny.yaml", "--data.count", "512"],
    "CAD-I, no CutMix, LAMB, two EMA profiles": [
        *["tiny.yaml", "--callbacks.cutmix", "null", "--data.settings", "[]", "--model.optimizer", "t2ikit.optim.Lamb"],
        *["--callbacks.ema.decay", "[0.9, 0.99]"],
    ],
    "CAD-I, dropout, self-conditioning, bf16": [
        *["tiny.yaml", "--model.denoiser.dropout", "0.1", "--model.objective.self_condition_rate", "0.9"],
        *["--trainer.precision", "bf16-mixed"],
    ],
    "DiT-I": ["dit_i.yaml"],
    "DiT-I, Crop": ["crop.yaml"],
    "DiT-I, rectified flow": ["flow.yaml"],
    "a term with parameters, which ends": ["term.yaml"],
    "stages": ["stages.yaml"],
    "growing": ["growing.yaml"],
    "2 workers": ["tiny.yaml", *WORKERS],
    "accumulation": ["tiny.yaml", *ACCUMULATED],
    "2 ranks": ["tiny.yaml", *TWO_RANKS],
    "2 ranks, a term with parameters": ["term.yaml", *TWO_RANKS],
    "2 ranks, accumulation, 2 workers, Crop": ["crop.yaml", *TWO_RANKS, *ACCUMULATED, *WORKERS],
    "2 ranks, stages": ["stages.yaml", *TWO_RANKS],
    "2 ranks, latents, as the quickstart": ["latents.yaml"],
}


def main(words: list[str]) -> int:
    """Verifies the kinds whose name holds one of ``words``; 1 if one is not equal."""
    chosen = {name: options for name, options in KINDS.items() if not words or any(word in name for word in words)}
    lines, failed = list[str](), False
    with tempfile.TemporaryDirectory(prefix="t2ikit-kinds-") as folder:
        for name, text in FILES.items():
            (Path(folder) / name).write_text(text)
        environment = {"T2IKIT_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1", **os.environ}
        for seed, (name, options) in enumerate(chosen.items()):
            since = time.monotonic()
            command = [sys.executable, "-m", "t2ikit", "verify-resume", *options, "--steps", "18", "--seed", str(seed)]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            verdict = {0: "equal", 1: "NOT EQUAL"}.get(done.returncode, "REFUSED")
            kills = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("kill ")]
            lines.append(f"{name:<44}{verdict:<11}{time.monotonic() - since:>5.0f} s  {'; '.join(kills)}")
            print(lines[-1], flush=True)
            if done.returncode != 0:
                failed = True
                print(done.stdout[-3000:], done.stderr[-3000:])
    print("\n" + "\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
