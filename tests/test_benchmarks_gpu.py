"""The series for a GPU runs on a CPU in small: every part gives measurements, bounds hold, results are kept."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.base import Benchmark, Measurement, Settings
from benchmarks.gpu import command  # the imports of its processes
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.timing import kind

ROOT = Path(__file__).parents[1]


def series(*words: str, out: Path, minutes: float = 4.0) -> tuple[int, dict[str, Any], str]:
    """Exit status, JSON and output of a dry run."""
    call = [sys.executable, "-m", "benchmarks", "gpu", "--dry-run", f"--minutes={minutes}", f"--out={out}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=290, check=False)
    written = json.loads(out.read_text()) if out.exists() else {}
    return done.returncode, written, done.stdout + done.stderr


@pytest.mark.long
def test_parts_in_small(tmp_path: Path) -> None:
    names = ["peak", "vectors", "dit_eager", "cad_plain", "cad_eager", "attention", "sampling", "loader"]
    status, written, output = series("--only", *names, out=tmp_path / "gpu.json")
    assert status == 0, output
    assert list(written["results"]) == names and all(written["results"].values())
    assert not written["left_out"] and written["commit"] and written["seconds"]["peak"] > 0
    rows = {one["what"]: one for part in written["results"].values() for one in part}
    assert all(one["reached"] for what, one in rows.items() if "float64 on the CPU, fp32" in what)
    assert any("share of the measured peak" in what for what in rows)
    assert any("kernel aten::" in what for what in rows) and any(", top: " in what for what in rows)
    assert rows["CAD-I L, 256 pixels, B=10, eager, against"]["ratio"] > 0
    table = (tmp_path / "gpu.md").read_text()
    assert table.startswith("| what | ours |") and table.count("\n") == len(rows) + 2


@pytest.mark.long
def test_all_of_it_in_small(tmp_path: Path) -> None:
    started = time.monotonic()
    status, written, output = series(out=tmp_path / "gpu.json")
    assert status == 0, output
    assert list(written["results"]) == [part.name for part in PARTS]
    assert time.monotonic() - started < 180


@pytest.mark.slow
def test_what_a_part_measured_before_it_is_cut_off_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "GRACE", 1.0)
    args = command.parser().parse_args(["--dry-run", "--minutes", "1", "--out", str(tmp_path / "gpu.json")])
    for variable in ("PYTHONPATH", "KINETO_LOG_LEVEL", "PYTORCH_NVML_BASED_CUDA_CHECK", *command.FOLDERS):
        monkeypatch.setenv(variable, "")  # the series sets them; afterwards they are as they were
    run = command.Series(args, tmp_path)
    run.context = multiprocessing.get_context("fork")  # so that the process knows the parts of this test
    monkeypatch.setattr("benchmarks.gpu.child.PARTS", (SLOW, BROKEN))
    assert run.run([SLOW, BROKEN, NEEDY]) == 1
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [one["what"] for one in written["results"]["slow"]] == ["before"]
    assert [one["what"] for one in written["results"]["broken"]] == ["before"]
    assert written["left_out"]["slow"].startswith("cut off after")
    assert written["left_out"]["broken"] == "ValueError: no such thing"
    assert written["left_out"]["needy"] == "needs no_such_package"


@pytest.mark.long
def test_without_time_nothing_is_begun(tmp_path: Path) -> None:
    status, written, _ = series("--only", "peak", out=tmp_path / "gpu.json", minutes=0.05)
    assert status == 1 and written["left_out"] == {"peak": "no time was left"} and not written["results"]


def test_parts_are_listed_and_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(part.name in listed for part in PARTS)
    assert command.main(["--only", "nothing"]) == 2
    assert "no part nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--minutes=nan",), "--minutes"),
        (("--minutes=0",), "--minutes"),
        (("--only", "peak", "--skip", "peak"), "leave no part"),
        (("--wheels=no-such-folder",), "--wheels"),
        (("--data=no-such-folder",), "--data"),
        (("--out=table.md",), "--out"),
        (("--out=/proc/none/gpu.json",), "--out"),
    ],
)
def test_mistakes_are_said_before_anything_is_measured(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--dry-run", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
@pytest.mark.long
def test_a_series_that_is_ended_ends_its_part_and_clears_up(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "gpu.json"
    call = [sys.executable, "-m", "benchmarks", "gpu", "--dry-run", "--only", "peak", "losses", f"--out={out}"]
    with subprocess.Popen(
        call, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith(b"losses:"):
                break
        time.sleep(2)
        running.send_signal(number)
        running.stdout.read()  # comes to its end when the part, which holds it, has ended
        assert running.wait(20) != 0
    assert list(json.loads(out.read_text())["results"]) == ["peak"]
    assert not list(tmp_path.glob("t2ikit-gpu-*"))


def test_everything_is_compared_with_what_ran_before_it() -> None:
    names = [part.name for part in PARTS]
    assert names.index("cad_plain") < names.index("cad_eager")
    for late in ("dit_largest", "cad_largest", "cad_compiled"):
        assert names.index("cad_blocks") < names.index(late)


def test_kernels_are_told_apart() -> None:
    assert kind("void pytorch_flash::flash_fwd_kernel<...>") == "attention"
    assert kind("fmha_cutlassF_bf16_aligned_64x64_rf_sm80") == "attention"
    assert kind("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT") == "matrix products"
    assert kind("cudnn::fusion::compute_dot_do_o_specialized<true, 64>") == "attention"
    assert kind("triton_poi_fused_add_mul_3") == "fused by the compiler"
    assert kind("triton_poi_fused_addmm_native_layer_norm_view_3") == "fused by the compiler"
    assert kind("triton_poi_fused__scaled_dot_product_cudnn_attention_cat_view_5") == "fused by the compiler"
    assert kind("triton_tem_fused_mm_3") == "fused by the compiler"
    assert kind("void multi_tensor_apply_kernel<TensorListMetadata<1>, LpNormFunctor<float>>") == (
        "over all parameters at once"
    )
    assert kind("void at::native::vectorized_layer_norm_kernel<float>") == "norms"


def test_a_clock_that_saw_no_step_after_its_warm_up_has_no_rate() -> None:
    from benchmarks.gpu.shapes import Clock

    clock = Clock(warm_up=2, limit=0.0, until=time.monotonic() + 60)
    trainer: Any = SimpleNamespace(global_step=0, should_stop=False)
    for step in (1, 2):
        trainer.global_step = step
        clock.on_train_batch_end(trainer)
        assert clock.rate == 0.0 and not trainer.should_stop
    trainer.global_step = 3
    time.sleep(0.01)
    clock.on_train_batch_end(trainer)
    assert 0 < clock.rate < 100 and trainer.should_stop


def test_a_named_commit_goes_before_that_of_a_clone_around(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.report import commit

    monkeypatch.setenv("T2IKIT_COMMIT", "abc")
    assert commit() == "abc"


def _slow(settings: Settings) -> Iterator[Measurement]:
    yield Measurement("before", 1.0, "s")
    time.sleep(60)


def _broken(settings: Settings) -> Iterator[Measurement]:
    yield Measurement("before", 1.0, "s")
    raise ValueError("no such thing")


SLOW = Benchmark("slow", "sleeps", _slow, 4.0)
BROKEN = Benchmark("broken", "fails", _broken, 10.0)
NEEDY = Benchmark("needy", "cannot run", _slow, 10.0, ("no_such_package",))
