"""Whether a long run holds more and more: a table of what its processes hold every 500 steps.

    python tests/leaks.py [STEPS]

Run by ``nox -s leaks``. A tiny model trains with checkpoints, TensorBoard, ``metrics.csv``, CutMix and EMA, and takes a
snapshot with scores, pictures and a validation loss every 100 steps; once with 0 workers and once with 2. After STEPS
(5,000) steps and their 50 snapshots file handles, threads, child processes and temporary files must be those after a
tenth of them, and the memory of the run and its workers at most 20 MB more than at any row before. Exits 1 if not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tiny

EXPERIMENT = """
extends: [tiny.yaml]
data: {init_args: {count: 4096}}
trainer: {log_every_n_steps: 10}
callbacks:
  table: null
  checkpoint: {init_args: {keep: 2}}
  val:
    init_args: {prompts: {init_args: {limit: 16}}, batch_size: 8, steps: 2, grid: 4, at_start: false, at_end: false}
  geneval:
    init_args: {prompts: {init_args: {per_task: 1}}, batch_size: 8, steps: 2, grid: 4, at_start: false, at_end: false}
  held: {class_path: held.Held}
"""
PLUGIN = '''
"""Writes down what the run holds; before a step, so that the snapshot of the step before is over."""

import gc
import json
import os
import tempfile
from pathlib import Path

from lightning import Callback


def resident(process):
    """Megabytes of a process in memory, a page that several share by its share, without mapped files, whose pages the
    system drops and reads as it likes.
    """
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) / 1024


def children():
    lists = Path("/proc/self/task").glob("*/children")  # of each thread its own
    return [int(pid) for path in lists for pid in path.read_text().split()]


class Held(Callback):
    def __init__(self, interval: int):
        self.interval = interval

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.global_step
        if step == 0 or step % self.interval:
            return
        gc.collect()
        processes = children()
        run = Path(trainer.default_root_dir)
        files = [path for path in Path(tempfile.gettempdir()).rglob("*") if not path.is_dir()]
        shared = [path for pid in (os.getpid(), *processes) for path in Path("/dev/shm").glob(f"*_{pid}_*")]
        unfinished = [path for end in ("partial", "sampling") for path in run.rglob(f"*.{end}")]
        row = {
            "step": step,
            "snapshots": len(list(run.glob("samples/val/*.png"))),
            "handles": len(os.listdir("/proc/self/fd")) - 1,  # without that of the listing
            "threads": len(os.listdir("/proc/self/task")),
            "children": len(processes),
            "temporary files": len(files) + len(shared) + len(unfinished),
            "objects": len(gc.get_objects()),
            "MB": sum(map(resident, ["self", *processes])),
        }
        with open("held.jsonl", "a") as file:
            file.write(json.dumps(row) + "\\n")
'''
EXACT = ("handles", "threads", "children", "temporary files")
MOST_MB = 20.0


def measure(folder: Path, workers: int, steps: int, snapshots: int = 50) -> list[dict[str, float]]:
    """Trains in a new folder, with so many snapshots of each kind; what the run held at every tenth of ``steps``.

    Raises:
        RuntimeError: the run fails; with its last lines.
    """
    (folder / "temporary").mkdir(parents=True)
    (folder / "tiny.yaml").write_text(tiny.EXPERIMENT)
    (folder / "small.yaml").write_text(EXPERIMENT)
    (folder / "held.py").write_text(PLUGIN)
    interval = str(steps // snapshots)
    options = {
        "trainer.max_steps": str(steps + 1),
        "data.num_workers": str(workers),
        "callbacks.held.interval": str(steps // 10),
        **{f"callbacks.{name}.every_n_steps": interval for name in ("val", "geneval", "checkpoint")},
    }
    words = [f"--{key}={value}" for key, value in options.items()]
    environment = {
        "T2IKIT_CACHE": str(folder.parent / "cache"),
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(folder / "temporary"),
    }
    command = [sys.executable, "-m", "t2ikit", "run", "small.yaml", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the run ends with status {done.returncode}: {done.stderr[-3000:]}")
    return [json.loads(line) for line in (folder / "held.jsonl").read_text().splitlines()]


def grown(rows: list[dict[str, float]]) -> list[str]:
    """What a run has more of, or less, after its last row than after its first, and memory that has grown."""
    first, last = rows[0], rows[-1]
    changed = [f"{name}: {first[name]:.0f} -> {last[name]:.0f}" for name in EXACT if first[name] != last[name]]
    least = min(row["MB"] for row in rows)
    return changed + ([f"MB: {least:.1f} -> {last['MB']:.1f}"] if last["MB"] - least > MOST_MB else [])


def table(rows: list[dict[str, float]]) -> str:
    """The rows as Markdown."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " ---: |" * len(names)]
    for row in rows:
        lines.append("| " + " | ".join(f"{row[name]:.{int(name == 'MB')}f}" for name in names) + " |")
    return "\n".join(lines)


def main(steps: int) -> int:
    """Prints a table for 0 and for 2 workers; 1 if something has grown."""
    failed = False
    with tempfile.TemporaryDirectory(prefix="t2ikit-leaks-") as folder:
        for workers in (0, 2):
            rows = measure(Path(folder) / str(workers), workers, steps)
            changed = grown(rows)
            failed = failed or bool(changed)
            print(f"{workers} workers: {'; '.join(changed) or 'holds nothing more'}\n\n{table(rows)}\n", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000))
