"""What is installed: every package, the experiments, the marker of types; and that the wheel stands alone."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path
from pkgutil import iter_modules, walk_packages
from types import ModuleType

import pytest

import t2ikit

ROOT = Path(__file__).parents[1]
SHIPPED = {"t2ikit": "t2ikit", "callbacks": "t2ikit/callbacks", "experiments": "t2ikit/experiments"}
SUFFIXES = (".py", ".yaml", ".json", ".safetensors", ".html", ".css", ".js")


def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_listed() -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "t2ikit").rglob("__init__.py")}
    expected = {".".join(folder.parts) for folder in folders} | {"t2ikit.callbacks", "t2ikit.experiments"}
    assert set(metadata()["options"]["packages"].split()) == expected


def test_version_and_scripts() -> None:
    assert version("t2ikit") == t2ikit.__version__
    ours = {
        script.name: script.value for script in entry_points(group="console_scripts") if script.dist.name == "t2ikit"
    }
    assert ours == {"t2ikit": "t2ikit.cli:main", "lightning": "t2ikit.cli:lightning_main"}


def test_callbacks_are_imported_from_their_folder() -> None:
    import t2ikit.callbacks

    place = Path(t2ikit.callbacks.__file__).parent
    assert place in (ROOT / "callbacks", Path(t2ikit.__file__).parent / "callbacks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the source, so that the build leaves nothing in the clone."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in SHIPPED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_every_file(wheel: Path) -> None:
    expected = {
        f"{target}/{path.relative_to(ROOT / source)}"
        for source, target in SHIPPED.items()
        for path in (ROOT / source).rglob("*")
        if (
            path.suffix in (".py", ".yaml", ".json", ".safetensors", ".html", ".css", ".js")
            and path.parent.suffix != ".scores"
        )
        or path.name in ("py.typed", "__init__.pyi")  # scores of sweeps are the repository's: a wheel trains anew
    }
    assert "t2ikit/embedded/shapes-full/config.json" in expected
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert inside == expected
    assert any("licenses/LICENSE" in name for name in zipfile.ZipFile(wheel).namelist())


def test_metadata_names_authors_and_no_link_that_leads_nowhere(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(name).decode()
    assert "\nAuthor: The t2ikit authors\n" in text
    assert "mine.yaml" in text and not re.findall(r"\]\((?!https?:)", text)


def test_wheel_stands_alone(wheel: Path, tmp_path: Path) -> None:
    """From the unpacked wheel, in a folder that is not the clone: callbacks import, shipped parents are found."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "mine.yaml").write_text("extends: [quickstart.yaml]\ntrainer: {max_steps: 7}")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import t2ikit
from t2ikit.config.compose import compose
from importlib.util import find_spec
assert t2ikit.__file__.startswith({str(tmp_path)!r}), t2ikit.__file__
assert find_spec("t2ikit.callbacks").origin.startswith({str(tmp_path)!r})
config = compose("mine.yaml")
assert config["trainer"]["max_steps"] == 7 and "ema" in config["callbacks"], config
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_name_is_a_module_and_something_else() -> None:
    """``t2ikit.metrics.prdc`` is the function, whatever has been imported before."""
    for package in [
        t2ikit.__name__,
        *(module.name for module in walk_packages(t2ikit.__path__, "t2ikit.") if module.ispkg),
    ]:
        imported = import_module(package)
        for module in iter_modules(imported.__path__):
            assert isinstance(getattr(imported, module.name, imported), ModuleType), f"{package}.{module.name}"
