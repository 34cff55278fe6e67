"""The project's checks: ``nox -s`` tests, ci, long, faults, verify, signals, leaks, audit, synthreal,
mini_paper, lint, types, docs, quickstart, wheel, release.

``lint`` and ``types`` read an installed wheel with the working folder outside the repository: the editable mapping of
``callbacks/`` to ``t2ikit.callbacks`` is invisible to import-linter and mypy.
"""

from collections.abc import Sequence
from pathlib import Path

import nox

ROOT = Path(__file__).parent.resolve()
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True


def build_wheel(session: nox.Session, *tools: str) -> Path:
    """Builds the wheel in a folder of the session outside the sources, with further tools installed."""
    folder = Path(session.create_tmp()).resolve()
    for old in folder.glob("*.whl"):
        old.unlink()
    session.install("build", *tools)
    session.run("python", "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT), silent=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install_wheel(session: nox.Session, *tools: str) -> None:
    """Builds the wheel and installs it without what it depends on: the checks only read the source."""
    wheel = build_wheel(session, *tools)
    session.install("--no-deps", "--force-reinstall", str(wheel))
    session.chdir(wheel.parent)


@nox.session
def tests(session: nox.Session) -> None:
    """pytest on the installed project; ``nox -s tests -- slow`` adds what takes some seconds, kills and ranks.

    Other arguments go to pytest: ``nox -s tests -- -k config``.
    """
    run_tests(session, session.posargs)


@nox.session
def ci(session: nox.Session) -> None:
    """What ``.ci/run`` does after ``lint``: ``wheel``, then ``tests -- slow``, in one environment to save minutes."""
    try_wheel(session, build_wheel(session))
    session.chdir(ROOT)
    session.env.pop("TMPDIR", None)  # the wheel's, too deep for sockets and closed to other users
    run_tests(session, ["slow"])


def run_tests(session: nox.Session, arguments: Sequence[str]) -> None:
    """Installs the project as it is edited and runs pytest; ``["slow"]``: all that is not long."""
    session.install("-e", ".[dev]", env={"PIP_NO_COMPILE": "1"})  # most of it is never imported
    slow = list(arguments) == ["slow"]
    words = ["-m", "not long", "--durations=30"] if slow else arguments
    parallel = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"] if slow or not words else []
    session.run("pytest", "-q", *parallel, *words, env={"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})


@nox.session
def long(session: nox.Session) -> None:
    """The tests that take minutes or many processes: kills at 20 moments, ranks, memory of 21,000 images."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-q", "-s", "-m", "long", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def signals(session: nox.Session) -> None:
    """50 runs of two ranks that a signal stops at random moments, as a table; 15 to 30 minutes of two cores."""
    session.install("-e", ".")
    session.run("python", "tests/signal_trials.py", *(session.posargs or ["50"]))


@nox.session
def leaks(session: nox.Session) -> None:
    """5,000 steps and 50 snapshots hold no more than 500 and 5; 10 minutes, a table."""
    session.install("-e", ".")
    session.run("python", "tests/leaks.py", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """pip-audit: known holes in the versions that are installed; a package that the registry cannot answer for fails.

    ``nox -s audit -- --vulnerability-service osv`` asks another one.
    """
    session.install("pip-audit", ".")
    installed = Path(session.create_tmp()) / "installed.txt"
    installed.write_text(str(session.run("python", "-m", "pip", "freeze", "--exclude", "t2ikit", silent=True)))
    exact = ["--requirement", str(installed), "--no-deps", "--disable-pip", "--strict"]
    session.run("pip-audit", *exact, *session.posargs)


@nox.session
def synthreal(session: nox.Session) -> None:
    """The proof of SynthReal on shapes with planted faults, three seeds: at most half an hour on two quiet cores."""
    session.install("-e", ".")
    session.run("python", "-m", "benchmarks.synthreal_proof", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def mini_paper(session: nox.Session) -> None:
    """One cell of the mini-paper once more, compared bit for bit, in 12 to 25 minutes. ``-- CELL`` names another."""
    session.install("-e", ".")
    words = ["python", "-m", "benchmarks.mini_paper_again", *session.posargs]
    session.run(*words, env={"OMP_NUM_THREADS": "1"}, success_codes=[0, 3])  # 3: another processor, which it says


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, and the floors of the house: a room imports only from floors below its own."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    install_wheel(session, "import-linter")
    session.run("lint-imports", "--config", str(ROOT / "setup.cfg"), "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """mypy on the installed wheel, with the libraries it is typed against."""
    session.install("mypy", "types-PyYAML", ".")
    install_wheel(session)
    session.run("mypy", "--config-file", str(ROOT / "setup.cfg"), "-p", "t2ikit")


@nox.session
def docs(session: nox.Session) -> None:
    """Links lead somewhere, commands are parsed, Python blocks run, and the site is built, warnings as errors."""
    session.install("pytest", "pytest-timeout", "-e", ".[docs]")
    session.run("pytest", "-q", "tests/test_docs.py")
    session.run("mkdocs", "build", "--strict", "--site-dir", str(Path(session.create_tmp()).resolve() / "site"))


@nox.session
def quickstart(session: nox.Session) -> None:
    """The README's first command, in an environment of its own."""
    session.install("-e", ".")
    session.run("lightning", "run", "experiments/quickstart.yaml", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Breaks runs, preparations and evaluations, and prints a table: fault, outcome, evidence. About 10 minutes."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-q", "-m", "fault", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def verify(session: nox.Session) -> None:
    """Kills and resumes a short run of every kind of experiment: `t2ikit verify-resume`, about 15 minutes."""
    session.install("-e", ".[dev]")
    session.run("python", "tests/verify_kinds.py", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """The wheel with what it asks for, in an environment and a folder of its own: help, and the smallest run."""
    try_wheel(session, build_wheel(session))


@nox.session
def release(session: nox.Session) -> None:
    """Wheel and source archive of this version into dist/, checked, and the wheel tried outside the sources."""
    session.install("build", "twine>=6.1")
    folder = ROOT / "dist"
    for old in folder.glob("t2ikit-*"):
        old.unlink()
    session.run("python", "-m", "build", "--outdir", str(folder), str(ROOT), silent=True)
    (built,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(built), str(archive))
    try_wheel(session, built)
    session.log(f"{built.name} and {archive.name} are in {folder}")


def try_wheel(session: nox.Session, built: Path) -> None:
    """Installs a wheel with what it asks for and runs the smallest experiment in a folder of the session."""
    session.install("--force-reinstall", "--no-deps", str(built))
    session.install(str(built))
    folder = Path(session.create_tmp()).resolve()
    session.chdir(folder)
    small = "--data.count 64 --data.val_count 16 --data.batch_size 8 --trainer.max_steps 2 --callbacks.geneval null"
    snapshot = "--callbacks.val.prompts.limit 8 --callbacks.val.steps 2 --run.name wheel"
    Path("tiny.yaml").write_text("extends: [quickstart.yaml]\n")
    session.run("t2ikit", "--help", silent=True)
    environment = {"T2IKIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    session.run("lightning", "run", "tiny.yaml", *small.split(), *snapshot.split(), env=environment)
