"""Keys and types against the classes: what jsonargparse says, and what we make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer

from t2ikit.config.class_nodes import accepted, class_parser
from t2ikit.config.errors import ConfigError
from t2ikit.config.imports import find_class
from t2ikit.config.merging import merge
from t2ikit.config.messages import explain
from t2ikit.run.describe import describe
from t2ikit.run.experiment import TRAINER_OURS, USER_ERRORS, Plan, build, check

EXPERIMENT: dict[str, Any] = {
    "seed_everything": 0,
    "model": {"class_path": "tiny_parts.Model", "init_args": {"net": {"class_path": "tiny_parts.Line"}}},
    "data": {"class_path": "tiny_parts.Data"},
    "trainer": {"accelerator": "cpu", "max_steps": 2, "enable_progress_bar": False, "enable_model_summary": False},
    "callbacks": {"gate": {"class_path": "tiny_parts.Gate"}},
    "run": {"directory": "runs", "name": "e"},
}


@pytest.fixture(autouse=True)
def _tiny_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def checked(**changes: Any) -> Plan:
    return check(merge(EXPERIMENT, changes))


def model(**arguments: Any) -> dict[str, Any]:
    return {"model": {"init_args": arguments}}


def lightning_callback(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": arguments}


def test_defaults_are_kept_beside_the_run() -> None:
    plan = checked(**model(space=[4, 5], sizes={"a": 2}, nets=[{"class_path": "tiny_parts.Curve"}]))
    assert plan.config["model"]["init_args"] == {
        "net": {"class_path": "tiny_parts.Line", "init_args": {"width": 1, "schedule": "cosine"}},
        "lr": 0.1,
        "sizes": {"a": 2, "b": None},
        "nets": [{"class_path": "tiny_parts.Curve", "init_args": {"depth": 2}}],
        "space": [4, 5],
    }
    again = check(yaml.safe_load(yaml.safe_dump(plan.config)))
    assert again.config == plan.config


def test_callback_takes_its_name_from_the_mapping() -> None:
    assert checked().config["callbacks"]["gate"]["init_args"] == {"tau": 0.5, "name": "gate"}
    named = checked(callbacks={"other": {"class_path": "tiny_parts.Gate"}, "x": "tiny_parts.Gate"})
    assert [named.config["callbacks"][key]["init_args"]["name"] for key in ("other", "x")] == ["other", "x"]
    given = checked(callbacks={"gate": {"init_args": {"name": "mine"}}})
    assert given.config["callbacks"]["gate"]["init_args"]["name"] == "mine"


def test_build(tmp_path: Path) -> None:
    experiment = build(checked(**model(space=[4, 5], sizes={"b": 2})), tmp_path, [])
    assert type(experiment.model).__name__ == "Model"
    assert experiment.model.space == (4, 5)
    assert (experiment.model.sizes.a, experiment.model.sizes.b) == (1, 2.0)  # type: ignore[union-attr]
    assert experiment.trainer.default_root_dir == str(tmp_path)
    assert experiment.callbacks["gate"] in experiment.trainer.callbacks  # type: ignore[attr-defined]
    assert experiment.trainer.checkpoint_callbacks == []  # Lightning's own would write files nobody asked for


BAD_NODES = [
    (
        model(net={"init_args": {"widht": 3}}),
        "model.init_args.net.init_args.widht: Line takes no 'widht'; nearest known: 'width'",
    ),
    (model(net={"init_args": {"depth": 3}}), "Line takes no 'depth' (an argument of Curve)"),
    (model(net={"init_args": {"width": "a"}}), "model.init_args.net.init_args.width: expected int, got a"),
    (
        model(net={"init_args": {"schedule": "cosin"}}),
        "net.init_args.schedule: expected one of 'cosine', 'sigmoid', got cosin; nearest known: 'cosine'",
    ),
    (model(net={"width": 3}), "model.init_args.net: unknown key 'width'; write it under model.init_args.net.init_args"),
    (model(net={"class_path": "tiny_parts.Lin"}), "tiny_parts has no class 'Lin'; nearest known: 'Line'"),
    (
        model(net={"class_path": "tiny_parts.Data"}),
        "model.init_args.net: tiny_parts.Data is no Net",
    ),
    (
        model(net={"class_path": "t2ikit.denoiserz.X"}),
        "no module 't2ikit.denoiserz'; nearest known: 't2ikit.denoisers'",
    ),
    (model(net={"class_path": "Line"}), "'Line' names no module: write module.Class"),
    (model(net={"class_path": "CADI"}), "did you mean t2ikit.denoisers.CADI?"),
    (model(net={"class_path": 3}), "model.init_args.net.class_path: expected module.Class, got 3"),
    (model(net=None), "model.init_args: missing net"),
    (model(net=3), "model.init_args.net: expected {class_path: ..., init_args: ...} of a Net, got 3"),
    (model(nets=3), "model.init_args.nets: expected list or null, got 3"),
    (model(nets="Line"), "model.init_args.nets: expected list or null, got Line: write [Line]"),
    (model(nets=["Line"]), "nets.0: 'Line' names no module: write {class_path: module.Class, init_args: {...}}"),
    (model(lr="fast"), "model.init_args.lr: expected float, got fast"),
    (model(space="a"), "model.init_args.space: expected int or tuple, got a"),
    (model(sizes={"c": 3}), "model.init_args.sizes: unknown key 'c'"),
    (model(sizes={"a": "x"}), "model.init_args.sizes.a: expected int, got x"),
    (
        model(nets=[{"class_path": "tiny_parts.Line", "init_args": {"width": "x"}}]),
        "nets.0.init_args.width: expected int",
    ),
    ({"model": {"class_path": "tiny_parts.Gate"}}, "model.class_path: tiny_parts.Gate is no LightningModule"),
    (
        {"model": {"class_path": "tiny_parts.Model", "init_arg": {}}},
        "model: unknown key 'init_arg'; nearest known: 'init_args'",
    ),
    ({"data": None}, "data: the experiment names no data module"),
    ({"data": {"class_path": "tiny_parts.Model"}}, "data.class_path: tiny_parts.Model is no LightningDataModule"),
    ({"callbacks": {"gate": {"class_path": "tiny_parts.Stop"}}}, "callbacks.gate.init_args: missing at"),
    (
        {"callbacks": {"gate": {"class_path": "tiny_parts.Net"}}},
        "callbacks.gate.class_path: tiny_parts.Net is no Callback",
    ),
    ({"callbacks": {"new": {"init_args": {"tau": 1}}}}, "callbacks.new: expected {class_path: ..., init_args: ...}"),
    ({"trainer": {"max_stps": 1}}, "trainer: unknown key 'max_stps'; nearest known: 'max_steps'"),
    ({"trainer": {"max_steps": "many"}}, "trainer.max_steps: expected int, got many"),
    ({"trainer": {"precision": "bf16-mixd"}}, "nearest known: 'bf16-mixed'"),
    ({"callbacks": {"gte": {"init_args": {"tau": 1}}}}, "of this name to change; nearest known: 'gate'"),
    ({"trainer": {"callbacks": []}}, "trainer.callbacks: name callbacks in the mapping"),
    ({"trainer": {"limit_test_batches": 3}}, "trainer.limit_test_batches: has no effect"),
    ({"trainer": {"limit_train_batches": 0}}, "trainer.limit_train_batches: 0 would train nothing"),
    ({"trainer": {"log_every_n_steps": -1}}, "trainer.log_every_n_steps: must be at least 1, or 0"),
    ({"trainer": {"logger": False}}, "trainer.logger: name loggers in the mapping"),
    ({"seed_everything": "x"}, "seed_everything: expected an int"),
    ({"run": {"name": ".."}}, "run.name: expected the plain name of a folder, got '..'"),
    ({"run": {"name": "a/b"}}, "run.name: expected the plain name of a folder"),
    ({"run": {"directory": 3}}, "run.directory: expected a folder"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_NODES, ids=[message[:40] for _, message in BAD_NODES])
def test_refused_when_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        checked(**changes)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


BAD_VALUES = [
    ({"callbacks": {"gate": {"init_args": {"tau": 1.5}}}}, "callbacks.gate (Gate): tau must lie in [0, 1], got 1.5"),
    (model(net={"init_args": {"width": 0}}), "model (Line): width must be at least 1, got 0"),
    (
        model(nets=[{"class_path": "tiny_parts.Line", "init_args": {"width": 0}}]),
        "model (Line): width must be at least 1",
    ),
    (
        {"data": {"init_args": {"batch_size": 6}}, "trainer": {"accumulate_grad_batches": 4}},
        "data.init_args.batch_size: 6 samples",
    ),
    ({"trainer": {"accelerator": "tpu"}}, "trainer: "),
    ({"trainer": {"accelerator": "abacus"}}, "trainer: "),
    ({"trainer": {"max_steps": -1, "max_epochs": -1}}, "trainer.max_steps: the run would never end"),
    ({"trainer": {"val_check_interval": 2}}, "trainer.val_check_interval: has no effect"),
    ({"trainer": {"check_val_every_n_epoch": 2}}, "trainer.check_val_every_n_epoch: has no effect"),
    ({"trainer": {"limit_val_batches": 0}}, "trainer.limit_val_batches: has no effect"),
    ({"trainer": {"num_sanity_val_steps": 2}}, "trainer.num_sanity_val_steps: has no effect"),
    (
        {"callbacks": {"sum": lightning_callback("GradientAccumulationScheduler", scheduling={4: 2})}},
        "callbacks.sum: GradientAccumulationScheduler would change how many samples a step has",
    ),
    (
        {"callbacks": {"size": lightning_callback("BatchSizeFinder")}},
        "callbacks.size: BatchSizeFinder would change how many samples a step has",
    ),
    (
        {"callbacks": {"rate": lightning_callback("LearningRateFinder")}},
        "callbacks.rate: LearningRateFinder would replace the learning rate",
    ),
    (
        {"callbacks": {"gate": {"init_args": {"tau": 1}}}, "data": {"init_args": {"batch_size": 8}}},
        "callbacks.gate: tau 1 and batch size 8 contradict each other",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD_VALUES, ids=[message[:40] for _, message in BAD_VALUES])
def test_refused_when_built(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    plan = checked(**changes)
    with pytest.raises(ConfigError) as refusal:
        build(plan, tmp_path)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("ddp_spawn", "trainer.strategy: ddp_spawn sends the whole run to new processes by pickle"),
        (
            {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"start_method": "spawn"}},
            "trainer.strategy: DDPStrategy sends the whole run",
        ),
        ("fsdp", "trainer.strategy: fsdp gives each device a part of the weights"),
        ("deepspeed_stage_2", "trainer.strategy: deepspeed_stage_2 gives each device a part of the weights"),
    ],
    ids=str,
)
def test_strategies_that_a_run_cannot_use_are_refused(tmp_path: Path, strategy: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        build(checked(trainer={"strategy": strategy, "devices": 2}), tmp_path)
    assert str(refusal.value).startswith(message) and str(refusal.value).count("write ddp") == 1


def test_a_model_that_validates_takes_the_options_of_lightning_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = checked(trainer={"limit_val_batches": 3, "num_sanity_val_steps": 0})
    with pytest.raises(ConfigError, match="limit_val_batches"):
        build(plan, tmp_path)
    monkeypatch.setattr(find_class("tiny_parts.Model", "x"), "validation_step", lambda self, batch: None)
    assert build(plan, tmp_path).trainer.limit_val_batches == 3


def test_a_defect_keeps_its_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(self: Any, **_: Any) -> None:
        raise ZeroDivisionError("a defect")

    assert ZeroDivisionError not in USER_ERRORS
    plan = checked()
    monkeypatch.setattr(find_class("tiny_parts.Gate", "x"), "__init__", broken)
    with pytest.raises(ZeroDivisionError):
        build(plan, tmp_path)


def test_nested_class_of_the_trainer() -> None:
    strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"find_unused_parameters": True}}
    assert type(checked(trainer={"strategy": strategy}).trainer["strategy"]).__name__ == "DDPStrategy"


def test_import_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_a_module.py").write_text("import no_such_module_at_all\n\n\nclass X: ...\n")
    (tmp_path / "is_broken.py").write_text("1 / 0\n\n\nclass X: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="importing it runs its code. If you trust it: --trust needs_a_module"):
        find_class("needs_a_module.X", "data")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="needs the missing module 'no_such_module_at_all'"):
        find_class("needs_a_module.X", "data")
    with pytest.raises(ConfigError, match="importing is_broken fails: ZeroDivisionError"):
        find_class("is_broken.X", "data")


def test_what_jsonargparse_says_is_understood() -> None:
    """The messages of the installed version; ``explain`` must be taught again if they change."""
    assert explain("Option 'foo' is not accepted", "k") == "k: unknown key 'foo'"
    assert explain("Group 'it.sizes' does not accept option 'c'", "k") == "k.sizes: unknown key 'c'"
    assert explain("the following arguments are required: it.net", "k") == "k: missing net"
    errors = ["- Problem with given class_path 'x':", "    Option 'c' is not accepted", "- Expected a y"]
    optional = 'Parser key "it.sizes":\n' + "\n".join(errors)
    assert explain(optional, "k") == "k.sizes: unknown key 'c'"
    assert explain("something new\nwith two lines", "k") == "k: something new with two lines"


def test_trainer_options_of_ours_exist() -> None:
    assert set(TRAINER_OURS) <= set(accepted(Trainer))


def test_parser_without_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = find_class("tiny_parts.Net", "x")
    assert accepted(cls) == () and class_parser(cls) is class_parser(cls)


def test_help_comes_from_the_docstrings() -> None:
    text = "\n".join(describe(checked(**model(net={"init_args": {"width": 7}}))))
    assert "model: tiny_parts.Model. Fits a line." in text
    assert "--model.lr [0.1]  step size." in text
    assert "--model.net.width [7]  how many inputs." in text
    assert "--model.net [tiny_parts.Line]  the network." in text and ".help" not in text
    assert "--data.batch_size [4]  samples a step." in text
    assert "--callbacks.gate.tau [0.5]  in [0, 1]." in text
    assert "--trainer.max_steps [2]  Stop training after this number of steps" in text
