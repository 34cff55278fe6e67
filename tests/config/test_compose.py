"""Composition: parents, merge by class, overrides, interpolation, and the messages of what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t2ikit.config.compose import compose
from t2ikit.config.errors import ConfigError
from t2ikit.config.files import find_experiment, shipped_experiments, shipped_names
from t2ikit.config.merging import Override, flatten, merge


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def composed(path: Path, *options: tuple[str, str]) -> dict[str, Any]:
    return compose(path, [Override(key, text) for key, text in options])


def test_three_levels_later_wins(tmp_path: Path) -> None:
    write(
        tmp_path,
        base__a="trainer: {max_steps: 1, devices: 1, accumulate_grad_batches: 1}\nrun: {name: a}",
        base__b="extends: [a.yaml]\ntrainer: {max_steps: 2, devices: 2}",
        base__side="trainer: {devices: 5}",
        c="extends: [base/b.yaml, base/side.yaml]\ntrainer: {max_steps: 3}",
    )
    config = composed(tmp_path / "c.yaml")
    assert config["trainer"] == {"max_steps": 3, "devices": 5, "accumulate_grad_batches": 1}
    assert config["run"] == {"directory": "runs", "name": "a"}
    assert config["model"] == {"class_path": "t2ikit.module.TextToImage"}
    assert "extends" not in config


def test_name_is_the_stem_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, first="trainer: {}", second="extends: first.yaml")
    assert composed(tmp_path / "second.yaml")["run"]["name"] == "second"


def test_one_experiment_leaves_nothing_for_the_next(tmp_path: Path) -> None:
    write(tmp_path, one="run: {directory: here}\nmodel: {init_args: {lr: 1}}", two="trainer: {}")
    composed(tmp_path / "one.yaml", ("run.name", "mine"))
    assert composed(tmp_path / "two.yaml")["run"] == {"directory": "runs", "name": "two"}
    assert composed(tmp_path / "two.yaml")["model"] == {"class_path": "t2ikit.module.TextToImage"}


def test_parent_falls_back_to_the_shipped_ones(tmp_path: Path) -> None:
    write(tmp_path, mine="extends: [base/training.yaml]\ndata: {class_path: x.Y}")
    assert (shipped_experiments() / "base" / "training.yaml").is_file()
    assert "ema" in composed(tmp_path / "mine.yaml")["callbacks"]


def test_a_diamond_is_no_circle(tmp_path: Path) -> None:
    write(
        tmp_path,
        top="trainer: {devices: 1}",
        left="extends: top.yaml",
        right="extends: top.yaml",
        end="extends: [left.yaml, right.yaml]",
    )
    assert composed(tmp_path / "end.yaml")["trainer"] == {"devices": 1}


BASE = {"class_path": "p.DiT", "init_args": {"width": 16, "inner": {"class_path": "p.A", "init_args": {"k": 1}}}}


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ({"init_args": {"width": 3}}, {**BASE, "init_args": {**BASE["init_args"], "width": 3}}),  # type: ignore[dict-item]
        ({"class_path": "p.DiT"}, BASE),
        ({"class_path": "p.UNet"}, {"class_path": "p.UNet"}),
        ("p.UNet", {"class_path": "p.UNet"}),
        ({"class_path": "p.UNet", "init_args": {"depth": 2}}, {"class_path": "p.UNet", "init_args": {"depth": 2}}),
        (None, None),
        ("${model}", "${model}"),
    ],
)
def test_merge_by_class(new: Any, expected: Any) -> None:
    assert merge(BASE, new) == expected


def test_swap_of_an_inner_class_leaves_the_outer_one() -> None:
    merged = merge(BASE, {"init_args": {"inner": {"class_path": "p.B"}}})
    assert merged == {"class_path": "p.DiT", "init_args": {"width": 16, "inner": {"class_path": "p.B"}}}
    assert BASE["init_args"]["inner"]["class_path"] == "p.A"  # type: ignore[index]


def test_two_paths_of_one_class_keep_the_arguments() -> None:
    base = {"class_path": "collections.OrderedDict", "init_args": {"a": 1}}
    same = merge({**base, "class_path": "json.decoder.JSONDecoder"}, {"class_path": "json.JSONDecoder"})
    assert same == {"class_path": "json.JSONDecoder", "init_args": {"a": 1}}
    assert "init_args" not in merge(base, {"class_path": "ordered.OrderedDict"})


def test_a_strange_module_is_not_imported_to_compare_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "imported"
    for name in ("stranger", "other_stranger"):
        (tmp_path / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')\nfrom t2ikit.denoisers import CADI\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for first, second in (("t2ikit.denoisers", "stranger"), ("stranger", "other_stranger")):
        merged = merge({"class_path": f"{first}.CADI", "init_args": {"a": 1}}, {"class_path": f"{second}.CADI"})
        assert merged == {"class_path": f"{second}.CADI"}
    assert not mark.exists()


def test_base_without_a_class_keeps_its_arguments() -> None:
    merged = merge({"init_args": {"seed": 1}}, {"class_path": "p.Data", "init_args": {"root": "d"}})
    assert merged == {"class_path": "p.Data", "init_args": {"seed": 1, "root": "d"}}


def test_lists_are_replaced() -> None:
    assert merge({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}


def test_callbacks_edit_add_drop(tmp_path: Path) -> None:
    write(
        tmp_path,
        base="callbacks: {ema: {class_path: p.EMA, init_args: {decay: 0.9, every: 2}}, crop: {class_path: p.Crop}}",
        child="extends: base.yaml\ncallbacks: {ema: {init_args: {decay: 0.5}}, crop: null, new: {class_path: p.New}}",
    )
    callbacks = composed(tmp_path / "child.yaml")["callbacks"]
    assert callbacks == {
        "ema": {"class_path": "p.EMA", "init_args": {"decay": 0.5, "every": 2}},
        "new": {"class_path": "p.New"},
    }
    assert list(composed(tmp_path / "child.yaml", ("callbacks.new", "null"))["callbacks"]) == ["ema"]


EXPERIMENT = """
seed_everything: 3
model:
  init_args:
    lr: 0.1
    denoiser: {class_path: p.DiT, init_args: {width: 8, bands: [{class_path: p.Band, init_args: {k: 1}}]}}
    sizes: {a: 1}
data: {class_path: p.Data, init_args: {root: here, batch_size: 4, seed: "${seed_everything}"}}
callbacks: {ema: {class_path: p.EMA, init_args: {decay: 0.9, batch: "${data.init_args.batch_size}"}}}
"""


@pytest.mark.parametrize(
    ("key", "text", "where", "value"),
    [
        ("data.root", "there", "data.init_args.root", "there"),
        ("data.init_args.root", "there", "data.init_args.root", "there"),
        ("model.lr", "1e-3", "model.init_args.lr", 1e-3),
        ("model.lr", "null", "model.init_args.lr", None),
        ("model.denoiser.width", "32", "model.init_args.denoiser.init_args.width", 32),
        ("model.denoiser.init_args.width", "32", "model.init_args.denoiser.init_args.width", 32),
        ("model.sizes.a", "7", "model.init_args.sizes.a", 7),
        ("model.sizes", "{b: 2}", "model.init_args.sizes", {"a": 1, "b": 2}),
        ("model.denoiser.bands.0.k", "5", "model.init_args.denoiser.init_args.bands.0.init_args.k", 5),
        ("callbacks.ema.decay", "0.5", "callbacks.ema.init_args.decay", 0.5),
        ("callbacks.crop.class_path", "p.Crop", "callbacks.crop", {"class_path": "p.Crop"}),
        ("trainer.devices", "[0, 1]", "trainer.devices", [0, 1]),
        ("trainer.precision", "'32'", "trainer.precision", "32"),
        ("trainer.max_steps", "-1", "trainer.max_steps", -1),
        ("run.name", "x", "run.name", "x"),
        ("model.text", "a=b: c", "model.init_args.text", "a=b: c"),
        ("model.text", "My Photos #2", "model.init_args.text", "My Photos #2"),
        ("model.text", "0100", "model.init_args.text", "0100"),
        ("model.text", "12:30", "model.init_args.text", "12:30"),
        ("model.text", "on", "model.init_args.text", "on"),
        ("model.text", "[a photo", "model.init_args.text", "[a photo"),
        ("model.text", "[0100, 7, {a: 1e-3, b: no}]", "model.init_args.text", ["0100", 7, {"a": 1e-3, "b": "no"}]),
        ("run.name", "1e-4", "run.name", "1e-4"),
        ("run.directory", "2026", "run.directory", "2026"),
    ],
)
def test_overrides(tmp_path: Path, key: str, text: str, where: str, value: Any) -> None:
    write(tmp_path, e=EXPERIMENT)
    node: Any = composed(tmp_path / "e.yaml", (key, text))
    for name in where.split("."):
        node = node[int(name) if isinstance(node, list) else name]
    assert node == value and type(node) is type(value)


def test_override_of_a_class_drops_its_arguments(tmp_path: Path) -> None:
    write(tmp_path, e=EXPERIMENT)
    for key in ("model.denoiser.class_path", "model.denoiser"):
        config = composed(tmp_path / "e.yaml", (key, "p.UNet"), ("model.denoiser.depth", "2"))
        assert config["model"]["init_args"]["denoiser"] == {"class_path": "p.UNet", "init_args": {"depth": 2}}


def test_interpolation_comes_after_the_overrides(tmp_path: Path) -> None:
    write(tmp_path, base=EXPERIMENT, e="extends: base.yaml\nseed_everything: 5")
    config = composed(tmp_path / "e.yaml", ("data.batch_size", "64"))
    assert config["callbacks"]["ema"]["init_args"]["batch"] == 64
    assert config["data"]["init_args"]["seed"] == 5
    assert composed(tmp_path / "e.yaml", ("seed_everything", "9"))["data"]["init_args"]["seed"] == 9


BAD = [
    ("modle: {}", "unknown key 'modle'; nearest known: 'model'"),
    ("run: {dir: x}", "unknown key 'run.dir'"),
    ("callbacks: [{class_path: p.EMA}]", "callbacks is a mapping of names"),
    ("trainer: fast", "trainer is a mapping, got 'fast'"),
    ("data: 3", "data is {class_path"),
    ("extends: [base/trainig.yaml]", "no file 'base/trainig.yaml'.*nearest known: 'base/training.yaml'"),
    ("extends: {a: b}", "extends is a list of files"),
    ("extends: [e.yaml]", r"extends goes in a circle: e\.yaml -> e\.yaml"),
    ("trainer: {devices: [1}", r"e\.yaml, line 1: not YAML"),
    ("trainer: {a: 1, a: 2}", "duplicate key"),
    ("[1, 2]", "an experiment is a mapping"),
    (
        "data: {class_path: p.D, init_args: {size: 2}}\n"
        "callbacks: {c: {class_path: p.C, init_args: {s: '${data.init_args.sise}'}}}",
        r"callbacks\.c\.init_args\.s: \$\{data\.init_args\.sise\} names no key; nearest known: 'data\.init_args\.size'",
    ),
    (
        "data: {class_path: p.D, init_args: {root: '???'}}",
        r"data\.init_args\.root: must be set .*--data\.init_args\.root VALUE",
    ),
    ("trainer: {devices: '${oc.env:T2IKIT_NO_SUCH_VARIABLE}'}", "T2IKIT_NO_SUCH_VARIABLE"),
    ("run: []", r"run is a mapping, got \[\]"),
    ("trainer: []", r"trainer is a mapping, got \[\]"),
    ("model:", r"model is \{class_path: ..., init_args: ...\}, got None"),
    ("3", "cannot be read: Invalid loaded object type: int"),
    ("run: {name: =}", "line 1: write '=' in quotes"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, e=text)
    with pytest.raises(ConfigError, match=message):
        composed(tmp_path / "e.yaml")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("trainr.max_steps", "1", r"--trainr\.max_steps: unknown option 'trainr'; nearest known: 'trainer'"),
        ("resum", "last", "unknown option 'resum'; nearest known: 'resume'"),
        ("extends", "x.yaml", "unknown option 'extends'"),
        ("model.denoiser.bands.3.k", "5", "is a list of 1, '3' is no index of it"),
        ("run.folder", "x", "unknown key 'run.folder'"),
        ("run", "null", r"run: expected \{directory: ..., name: ...\}, got null"),
        ("model.denoiser.bands.\u00b2.k", "5", "is a list of 1, '\u00b2' is no index of it"),
        ("model.denoiser.bands.\u0660.k", "5", "is a list of 1, '\u0660' is no index of it"),
    ],
)
def test_override_refused(tmp_path: Path, key: str, text: str, message: str) -> None:
    write(tmp_path, e=EXPERIMENT)
    with pytest.raises(ConfigError, match=message):
        composed(tmp_path / "e.yaml", (key, text))


@pytest.mark.parametrize("name", ["quickstart", "base/evaluation", "synthreal/rgb"])
def test_the_file_of_a_shipped_experiment_that_is_not_here_has_a_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after ``pip install``, with a command of the pages."""
    monkeypatch.chdir(tmp_path)
    for path in (f"experiments/{name}.yaml", f"{name}.yaml"):
        with pytest.raises(ConfigError, match=f"no experiment file {path}; .* is called {name}$"):
            find_experiment(path)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, quickstart="trainer: {}")
    with pytest.raises(ConfigError, match=r"no experiment file .*quikstart\.yaml.*quickstart\.yaml"):
        composed(tmp_path / "quikstart.yaml")


def test_a_missing_file_is_not_taken_for_another_kind_of_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, mine="extends: base/training.yaml", site="site_name: t2ikit\nnav:\n  model: x.md")
    (tmp_path / ".pre-commit-config.yaml").write_text("repos: []")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(find_experiment.__globals__, "shipped_experiments", lambda: tmp_path / "shipped")
    write(tmp_path / "shipped", quickstart="trainer: {}")
    with pytest.raises(ConfigError) as caught:
        composed(Path("zzz"))
    listed = "; `t2ikit experiments` lists those that come with the kit"
    assert str(caught.value) == f"no experiment zzz; known: mine, quickstart{listed}"
    with pytest.raises(ConfigError) as caught:
        composed(Path("zzz.yaml"))
    assert str(caught.value) == "no experiment file zzz.yaml; known: mine.yaml, shipped/quickstart.yaml"


def test_an_experiment_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = composed(Path("quickstart"))
    assert shipped == composed(shipped_experiments() / "quickstart.yaml") and shipped["run"]["name"] == "quickstart"
    write(tmp_path, quickstart="extends: [quickstart.yml]\ntrainer: {max_steps: 7}")
    with pytest.raises(ConfigError, match=r"no file 'quickstart.yml'"):
        composed(Path("quickstart"))  # a file of the current folder comes first
    write(tmp_path, quickstart="extends: [shapes_dit_i.yaml]\ntrainer: {max_steps: 7}")
    assert composed(Path("quickstart"))["trainer"]["max_steps"] == 7
    assert find_experiment(tmp_path / "quickstart") == tmp_path / "quickstart.yaml"
    with pytest.raises(ConfigError, match="no experiment shapes_dit_ii; nearest known: 'shapes_dit_i'"):
        find_experiment("shapes_dit_ii")
    assert {"quickstart", "synthreal/depth", "uvit_huge_frozen"} <= set(shipped_names())
    assert not any(name.startswith("base/") for name in shipped_names())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "null",
        "run:",
        "extends:",
        "extends: []",
        "trainer:",
        "callbacks:",
        "loggers:",
        "stages:",
        "sweep:",
    ],
)
def test_a_key_with_nothing_below_says_nothing(tmp_path: Path, text: str) -> None:
    config = composed(write(tmp_path, e=text) / "e.yaml")
    assert config["run"] == {"directory": "runs", "name": "e"} and config["callbacks"] == {}


def test_an_empty_run_drops_that_of_the_parent(tmp_path: Path) -> None:
    write(tmp_path, parent="run: {directory: there, name: x}", e="extends: parent.yaml\nrun:")
    assert composed(tmp_path / "e.yaml")["run"] == {"directory": "runs", "name": "e"}


def test_long_circle_is_named(tmp_path: Path) -> None:
    write(tmp_path, a="extends: b.yaml", b="extends: c.yaml", c="extends: b.yaml")
    with pytest.raises(ConfigError, match=r"circle: b\.yaml -> c\.yaml -> b\.yaml"):
        composed(tmp_path / "a.yaml")


def test_flatten() -> None:
    assert dict(flatten({"a": {"b": 1, "c": [2]}, "d": {}})) == {"a.b": 1, "a.c": [2], "d": {}}
