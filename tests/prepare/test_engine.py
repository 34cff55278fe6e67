"""The engine: results in order whatever was interrupted, damaged or spread; shards written once."""

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from t2ikit.lock import Locked, is_locked
from t2ikit.prepare.engine.engine import run_work
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.engine.shards import Ledger, Rejected, Results

PROGRAM = Path(__file__).with_name("counting_work.py")
_spec = importlib.util.spec_from_file_location("counting_work", PROGRAM)
assert _spec is not None and _spec.loader is not None
counting_work: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(counting_work)
Counting, Making = counting_work.Counting, counting_work.Making

CPU = Launch("cpu", 1, batch_size=4)
EXPECTED = [f"item {k}".encode() for k in range(103) if k % 13 != 12]


def run(work: Any, folder: Path, **options: Any) -> Results:
    return run_work(work, folder, options.pop("launch", CPU), "counting", shard_size=10, **options)


def test_results_are_in_order_and_shards_are_not_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    work = Counting()
    results = run(work, folder)
    assert list(results) == EXPECTED and len(results) == len(EXPECTED)
    assert list(results.rejected()) == [(k, "unlucky") for k in range(12, 103, 13)]
    assert results.largest("longest") == len("item 102") and work.shards_begun == 11
    assert [str(device) for device in work.devices] == ["cpu"]
    times = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert len(times) == 22
    again = Counting()
    assert list(run(again, folder)) == EXPECTED
    assert again.computed == [] and again.devices == []
    assert {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")} == times
    results.discard()
    assert not folder.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_do_not_change_the_results(tmp_path: Path, workers: int) -> None:
    results = run(Counting(), tmp_path / "work", launch=Launch("cpu", 1, workers=workers, batch_size=7))
    assert list(results) == EXPECTED


@pytest.mark.parametrize("workers", [0, 2])
def test_host_work_is_written_by_its_loaders(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same shards and lines as those of results that are sent here, at any number of loader processes."""
    write, here = Ledger.write, os.getpid()

    def elsewhere(self: Ledger, *arguments: Any) -> None:
        assert (os.getpid() == here) == (workers == 0)
        write(self, *arguments)

    monkeypatch.setattr(Ledger, "write", elsewhere)
    results = run(Making(), tmp_path / "made", launch=Launch("cpu", 1, workers=workers, batch_size=3))
    assert list(results) == EXPECTED
    assert list(results.rejected()) == [(k, "unlucky") for k in range(12, 103, 13)]
    monkeypatch.undo()
    run(Counting(), tmp_path / "sent")
    shards = sorted(path.name for path in (tmp_path / "made").glob("shard-*.bin"))
    assert len(shards) == 11
    for name in shards:
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "sent" / name).read_bytes()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failure_in_a_loader_keeps_what_was_finished(tmp_path: Path, workers: int) -> None:
    folder, launch = tmp_path / "work", Launch("cpu", 1, workers=workers)
    with pytest.raises(RuntimeError, match="^item 57 is broken$"):
        run(Making(broken=57), folder, launch=launch)
    done = Ledger(folder, "making", 103, 10).finished()
    assert {0, 1, 2, 3, 4} <= set(done) and 5 not in done
    nodes = {path: path.stat().st_ino for path in map(Ledger(folder, "making", 103, 10).path, done)}
    assert list(run(Making(), folder, launch=launch)) == EXPECTED
    assert {path: path.stat().st_ino for path in nodes} == nodes


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch ends them, after their shard")
def test_loaders_end_with_the_process_that_was_killed() -> None:
    """They write: one that went on could put a shard where the next call has finished."""
    program = """
import multiprocessing, time
from t2ikit.prepare.engine.loading import _begin

def load(number):
    _begin(number)
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(600)

multiprocessing.get_context("fork").Process(target=load, args=(0,)).start()
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    state = Path(f"/proc/{int(process.stdout.readline())}/stat")
    assert state.is_file()
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < until:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_failure_keeps_what_was_finished(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = tmp_path / "work"
    with pytest.raises(RuntimeError, match="item 57 is broken"):
        run(Counting(broken=57), folder)
    assert Ledger(folder, "counting", 103, 10).finished() == [0, 1, 2, 3, 4]
    (folder / ".shard-000005.bin.1-ab.partial").write_bytes(b"half")
    (folder / "shard-000006.bin").write_bytes(b"without its line")
    capfd.readouterr()
    work = Counting()
    assert list(run(work, folder)) == EXPECTED
    assert work.computed == list(range(50, 103)) and not list(folder.glob(".*.partial"))
    out = capfd.readouterr()
    assert "50/103" in out.err and "103/103" in out.err and out.out == ""  # resumed items count as done; no noise
    assert "Warning" not in out.err and "lightning" not in out.err.lower()


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "line", "foreign"])
def test_a_damaged_shard_is_made_again(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "work"
    run(Counting(), folder)
    shard, line = folder / "shard-000003.bin", folder / "shard-000003.json"
    content = bytearray(shard.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[:-3])
    elif damage == "gone":
        shard.unlink()
    elif damage == "line":
        line.write_text(line.read_text()[:30])
    else:
        other = tmp_path / "other"
        run(Counting(identity="other"), other)
        line.write_bytes((other / line.name).read_bytes())
    work = Counting()
    assert list(run(work, folder)) == EXPECTED
    assert work.computed == list(range(30, 40))


def test_results_of_other_work_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    run(Counting(identity="mine"), folder)
    for other in (Counting(identity="other"), Counting(items=104, identity="mine")):
        with pytest.raises(FileExistsError, match="unfinished results of other inputs.*--overwrite"):
            run(other, folder)
    work = Counting(identity="other")
    assert list(run(work, folder, overwrite=True)) == EXPECTED and len(work.computed) == 103


@pytest.mark.fault("the same step of prepare twice at once", "the second call is refused")
def test_one_call_at_a_time(tmp_path: Path) -> None:
    """The second one touches nothing of the first, and takes over when that was killed."""
    folder = tmp_path / "work"
    program = (
        "import sys; from pathlib import Path; from t2ikit.prepare.engine.shards import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), 'counting', 103, 10); ledger.open()\n"
        "(ledger.folder / '.shard-000000.bin.1-ab.partial').write_bytes(b'half'); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        for overwrite in (False, True):
            with pytest.raises(Locked, match=f"{folder}: another process prepares the same data.*--out"):
                run(Counting(), folder, overwrite=overwrite)
        with pytest.raises(Locked):
            run(Counting(identity="other"), folder, overwrite=True)
        assert len(list(folder.glob(".*.partial"))) == 1 and len(list(folder.iterdir())) == 3
        process.kill()
    results = run(Counting(), folder)
    assert list(results) == EXPECTED and not is_locked(folder)
    results.discard()
    assert not folder.exists()


def test_options_are_checked(tmp_path: Path) -> None:
    for options, name in (({"batch_size": 0}, "--batch-size"), ({"workers": -1}, "--workers")):
        with pytest.raises(ValueError, match=name):
            Launch(**options)
    with pytest.raises(ValueError, match="--accelerator abacus"):
        run(Counting(), tmp_path / "work", launch=Launch("abacus"))
    with pytest.raises(ValueError, match="--devices none"):
        run(Counting(), tmp_path / "work", launch=Launch("cpu", "none"))
    with pytest.raises(ValueError, match="5 items, but 4 results"):
        Ledger(tmp_path, "x", 5, 5).write(0, [b"a", b"b", b"c", Rejected("d")], {})


def start(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROGRAM), str(folder / "work"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=800)


@pytest.mark.timeout(900)
@pytest.mark.long
def test_two_ranks_give_the_same(tmp_path: Path) -> None:
    """Rank 1 finishes what it was dealt, rank 0 alone uses the results, and both wait until they are used."""
    (tmp_path / "two").mkdir()
    done = start(tmp_path / "two", "2")
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(b"".join(EXPECTED)).hexdigest()
    assert sorted(done.stdout.splitlines()) == ["after False", "after False", f"chief {len(EXPECTED)} {digest}"]


@pytest.mark.timeout(900)
@pytest.mark.long
def test_a_rank_that_fails_stops_all_and_the_rest_is_kept(tmp_path: Path) -> None:
    failed = start(tmp_path, "2", "75")  # shard 7, of rank 1
    assert failed.returncode != 0 and "item 75 is broken" in failed.stderr and "chief" not in failed.stdout
    ledger = Ledger(tmp_path / "work", "counting", 103, 10)
    done = ledger.finished()
    assert {1, 3, 5} <= set(done) and 7 not in done
    work = Counting()
    assert list(run(work, tmp_path / "work")) == EXPECTED
    assert not {k for shard in done for k in ledger.range(shard)} & set(work.computed)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_started_ranks_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Killed with SIGKILL, rank 0 cannot tell the others."""
    command = [sys.executable, str(PROGRAM), str(tmp_path / "work"), "2", "", "5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ranks = [int(process.stdout.readline().split()[1]) for _ in range(2)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 300
    while any(Path(f"/proc/{rank}").exists() for rank in ranks) and time.monotonic() < until:
        time.sleep(0.2)
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
