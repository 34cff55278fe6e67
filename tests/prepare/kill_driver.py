"""Runs the commands of prepare, kills them with SIGKILL at random moments, and says what became of the data.

The command runs in a fork of this process, which has imported everything: so the moments lie within the work and not
in the seconds that imports take. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import t2ikit.commands.prepare
import t2ikit.prepare.cutmix
import t2ikit.prepare.encode.encode
import t2ikit.prepare.images  # noqa: F401 - so that a fork need not
from t2ikit import cli

Stamp = tuple[int, int]


def commands(source: str, out: Path) -> list[list[str]]:
    where = ["--accelerator", "cpu", "--devices", "1", "--shard-size", "16", "--batch-size", "8", "--workers", "1"]
    encoders = ["--autoencoder", "pixels", "--text-encoder", "small", "--text-dim", "16"]
    steps = [
        ["images", "--source", source, "--size", "16", *where],
        ["captions"],
        ["cutmix", "--setting", "cmall", *where],
        ["encode", *encoders, *where],
    ]
    return [["prepare", step, "--out", str(out), *rest] for step, *rest in steps]


def start(words: list[str], log: Path) -> int:
    """Forks a process that runs a command; its own group, so that its loader processes can be killed with it."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        status = cli.main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def kill(child: int, with_loaders: bool) -> None:
    """SIGKILL, at once to its loader processes or to the command alone."""
    try:
        os.killpg(child, signal.SIGKILL) if with_loaders else os.kill(child, signal.SIGKILL)
    except ProcessLookupError:  # not yet a group of its own
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def stamps(out: Path) -> dict[str, Stamp]:
    """What is finished: shards by set, part and number; a chunk is the file of its shard, linked."""
    found = {}
    for line in out.rglob(".*.work/shard-*.json"):
        shard = line.with_suffix(".bin")
        name, part = line.parent.name.removeprefix(".").removesuffix(".work").split(".part-")
        if part == "0" and shard.is_file():
            found[str(line.parent.with_name(name) / f"chunk-0-{int(shard.stem[6:])}.bin")] = stamp(shard)
    for chunk in out.rglob("chunk-*.bin"):
        if ".partial" not in str(chunk) and ".old" not in str(chunk):
            found[str(chunk)] = stamp(chunk)
    return found


def stamp(path: Path) -> Stamp:
    state = path.stat()
    return state.st_ino, state.st_mtime_ns


def run_chain(
    source: str, out: Path, log: Path, budget: int, lasted: list[float], share: Callable[[], float]
) -> dict[str, int]:
    """All steps, killed at most ``budget`` times, a share ``share()`` of its duration after a start; counts shards made
    anew.

    Every fourth attempt is left in peace, so that all steps get their share of the kills. ``lasted`` are the seconds
    that each step took; a step that is quicker now, on a machine with less to do, is killed sooner the next time.
    """
    kills = redone = attempts = 0
    finished: dict[str, Stamp] = {}
    for step, words in enumerate(commands(source, out)):
        while True:
            attempts += 1
            moment = lasted[step] * share() if kills < budget and attempts % 4 else None
            child, begun = start(words, log), time.monotonic()
            done, status = os.waitpid(child, 0 if moment is None else os.WNOHANG)
            while not done and time.monotonic() - begun < (moment or 0.0):
                time.sleep(0.001)
                done, status = os.waitpid(child, os.WNOHANG)
            if done:
                lasted[step] = min(lasted[step], time.monotonic() - begun)
            if not done:
                kill(child, with_loaders=kills % 2 == 0)
                kills += 1
            elif status != 0:
                raise RuntimeError(f"{words} failed:\n{log.read_text()[-4000:]}")
            now = stamps(out)
            redone += sum(now.get(name) != old for name, old in finished.items())
            finished = now
            if done:
                break
    return {"kills": kills, "redone": redone}


def main(source: str, folder: str, kills: str, seed: str) -> None:
    root, wanted = Path(folder), int(kills)
    times = [time.monotonic()]
    for words in commands(source, root / "plain"):
        child = start(words, root / "log.txt")
        if os.waitpid(child, 0)[1] != 0:
            raise RuntimeError(f"{words} failed:\n{(root / 'log.txt').read_text()[-4000:]}")
        times.append(time.monotonic())
    lasted = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    randomness = random.Random(int(seed))
    rounds: list[dict[str, int]] = []
    while left := wanted - sum(one["kills"] for one in rounds):
        out = root / f"killed-{len(rounds)}"
        rounds.append(run_chain(source, out, root / "log.txt", left, lasted, randomness.random))
    before = stamps(root / "killed-0")
    run_chain(source, root / "killed-0", root / "log.txt", 0, lasted, randomness.random)
    print(json.dumps({"rounds": rounds, "second_run_changed": stamps(root / "killed-0") != before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
