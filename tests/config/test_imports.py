"""What the files of strangers may name: nothing strange is imported, no function is called, at any depth."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from t2ikit.checkpoints import load_denoiser
from t2ikit.config.class_nodes import check_component
from t2ikit.config.compose import compose
from t2ikit.config.errors import ConfigError
from t2ikit.config.files import shipped_experiments
from t2ikit.config.imports import find_class
from t2ikit.config.merging import Override, merge
from t2ikit.config.origins import Origins
from t2ikit.denoisers import DiTI
from t2ikit.denoisers.saved import SavedDenoiser
from t2ikit.diffusion import Guidance
from t2ikit.evaluation.settings import Sampling
from t2ikit.run.experiment import Plan, build, check, origins_of

STRANGER = """
from pathlib import Path
MARK = Path(__file__).with_name("mark")
MARK.write_text("imported")
class Thing:
    def __init__(self, *arguments, **options):
        MARK.write_text("called")
    def __call__(self, x):
        return x
class Part(Thing):
    def __init__(self, size: int = 1):
        self.size = size
def function(*arguments):
    MARK.write_text("called")
"""
# A command that a class of a known library runs when it is built.
PROCESS = "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler"


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mark of a module that is installed and not trusted; the current folder is another one."""
    installed, here = tmp_path / "installed", tmp_path / "here"
    installed.mkdir()
    here.mkdir()
    (installed / "stranger.py").write_text(STRANGER)
    monkeypatch.setattr(sys, "path", [*sys.path, str(here), str(installed)])
    monkeypatch.chdir(here)
    for module in ("stranger", "mine"):
        sys.modules.pop(module, None)
    return installed / "mark"


def checked(*overrides: tuple[str, str]) -> Plan:
    """The quickstart with changes."""
    experiment = shipped_experiments() / "quickstart.yaml"
    return check(compose(experiment, [Override(key, text) for key, text in overrides]), origins_of())


def mine(text: str) -> None:
    """A module in the current folder."""
    Path("mine.py").write_text(f"from __future__ import annotations\n{text}")
    importlib.invalidate_caches()


def arguments(class_path: str, **options: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": options}


PLACES = [
    ("model.objective.terms", "{a: NAME}", "model.init_args.objective.init_args.terms.a"),
    ("model.objective.weighting", "NAME", "model.init_args.objective.init_args.weighting"),
    ("model.objective.weighting", "${data.init_args.root}", "model.init_args.objective.init_args.weighting"),
    ("model.learning_rate", "NAME", "model.init_args.learning_rate"),
    ("callbacks.val.metrics", "[NAME]", "callbacks.val.init_args.metrics.0"),
    ("callbacks.val.metrics", "'[\"\\x73tranger.Thing\"]'", "callbacks.val.init_args"),
    ("callbacks.val.method", "NAME", "callbacks.val.init_args.method"),
    ("callbacks.val.guidance", "{weaker: NAME}", "callbacks.val.init_args.guidance.weaker"),
    (
        "callbacks.val.guidance",
        "{class_path: t2ikit.diffusion.Guidance, init_args: {weaker: '{class_path: \"\\x73tranger.Thing\"}'}}",
        "callbacks.val.init_args.guidance.init_args",
    ),
    ("trainer.plugins", "NAME", "trainer.plugins"),
    ("trainer.plugins", "[NAME]", "trainer.plugins.0"),
    ("trainer.profiler", "NAME", "trainer.profiler"),
    (
        "trainer.strategy",
        "{class_path: lightning.pytorch.strategies.FSDPStrategy, init_args: {auto_wrap_policy: NAME}}",
        "trainer.strategy.init_args.auto_wrap_policy",
    ),
    (
        "trainer.strategy",
        "{class_path: lightning.pytorch.strategies.FSDPStrategy, init_args: {activation_checkpointing_policy: [NAME]}}",
        "trainer.strategy.init_args.activation_checkpointing_policy.0",
    ),
    (
        "callbacks.strange",
        "{class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {on_fit_start: NAME}}",
        "callbacks.strange.init_args.on_fit_start",
    ),
    ("loggers.strange", "NAME", "loggers.strange.class_path"),
]


@pytest.mark.parametrize("name", ["stranger.Thing", "stranger.function"])
@pytest.mark.parametrize(("key", "text", "where"), PLACES, ids=[f"{key} {text[:20]}" for key, text, _ in PLACES])
def test_a_strange_module_is_never_imported(stranger: Path, key: str, text: str, where: str, name: str) -> None:
    root = [("data.root", name)] if "$" in text else []
    with pytest.raises(ConfigError, match="If you trust it: --trust stranger") as refusal:
        checked(*root, (key, text.replace("NAME", name)))
    assert str(refusal.value).startswith(f"{where}: ") or (where + ".class_path: ") in str(refusal.value)
    assert not stranger.exists() and "stranger" not in sys.modules


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("callbacks.a", "{class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {on_fit_start: NAME}}"),
        ("callbacks.a", "NAME"),
        ("model.objective.weighting", "NAME"),
        ("model.optimizer", "{class_path: NAME}"),
        ("trainer.profiler", "NAME"),
    ],
)
@pytest.mark.parametrize("name", ["torch.load", "torch.hub.load", "t2ikit.module.TextToImage.load_state_dict"])
def test_a_function_is_no_class(stranger: Path, key: str, text: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' names a function, not a class"):
        checked((key, text.replace("NAME", name)))


def test_a_place_without_a_kind_takes_no_class_in_a_library(stranger: Path) -> None:
    node = "{class_path: %s, init_args: {entrypoint: touch, args: [%s], env: {}, stdout: null, stderr: null, %s}}"
    node %= (PROCESS, stranger, "local_rank_id: 0, numa_options: null")
    for key, text, where in [
        ("model.compile", "{backend: NODE}", "model.init_args.compile.backend.class_path"),
        ("model.compile", "{backend: 'NODE'}", "model.init_args"),
        ("data.storage_options", "{a: NODE}", "data.init_args.storage_options.a.class_path"),
    ]:
        with pytest.raises(ConfigError, match=f"{where}: no class can be named here"):
            checked((key, text.replace("NODE", node)))
    metric = "[{class_path: t2ikit.metrics.DistributionMetrics, init_args: {features: NODE}}]"
    with pytest.raises(ConfigError, match="SubprocessHandler is no FeatureExtractor"):  # a field of a base class
        checked(("callbacks.val.metrics", metric.replace("NODE", node)))
    assert not stranger.exists()


def test_what_a_library_imports_is_not_of_the_library(stranger: Path) -> None:
    with pytest.raises(ConfigError, match=r"'pathlib\S* is neither a module of the kit"):
        find_class("torch.hub.Path", "data.class_path")
    with pytest.raises(ConfigError, match="names a module, not a class"):
        mine("from types import ModuleType\nclass Mine:\n    def __init__(self, module: ModuleType):\n        pass\n")
        check_component("data", arguments("mine.Mine", module="stranger"), object)
    assert not stranger.exists()


def test_what_code_names_and_what_lies_here_may_be_used(stranger: Path) -> None:
    mine(
        """
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
import stranger
from stranger import Part, Thing
from t2ikit.diffusion.weightings import Weighting

@dataclass
class Pair:
    part: Part | None = None
    size: int = 1

class Holder:
    class Inner(Part):
        pass

class Flat(Weighting):
    def __call__(self, process: Any, t: Any) -> Any:
        return t

class Mine:
    def __init__(
        self,
        part: Part | None = None,
        function: Callable[[int], int] = stranger.function,
        make: Callable[[int], Part] = Part,
        kind: type[Part] = Part,
        pair: Pair | None = None,
        call: Callable[[int], int] | None = None,
        anything=None,
    ):
        self.part, self.function, self.pair, self.anything = part, function, pair, anything
"""
    )
    built = check_component("data", "mine.Mine", object).build()
    assert built.function is sys.modules["stranger"].function  # a default of the code
    for options in (
        {"part": "mine.Part"},  # another name of stranger.Part, which a file here imports
        {"part": {"size": 3}},
        {"part": {"class_path": "mine.Holder.Inner"}},
        {"pair": {"part": "mine.Part", "size": 2}},
        {"make": "mine.Part", "kind": "mine.Part", "call": "mine.Thing"},
        {"anything": {"class_path": "torch.nn.ReLU"}},
        {"anything": {"class_path": "mine.Mine", "init_args": {"part": "mine.Part"}}},
    ):
        built = check_component("data", arguments("mine.Mine", **options), object).build()
    assert type(built.anything.part).__name__ == "Part"
    for options in ({"call": "stranger.Thing"}, {"anything": {"class_path": "stranger.Thing"}}):
        with pytest.raises(ConfigError, match="--trust stranger"):
            check_component("data", arguments("mine.Mine", **options), object)
        check_component("data", arguments("mine.Mine", **options), object, origins=Origins(trusted=("stranger",)))
    plan = checked(("model.objective.weighting", "mine.Flat"))
    assert plan.config["model"]["init_args"]["objective"]["init_args"]["weighting"] == {"class_path": "mine.Flat"}


def test_a_class_path_as_plain_text_where_a_name_is_taken_too(stranger: Path) -> None:
    mine(
        "from t2ikit.diffusion.solvers import Solver\nfrom t2ikit.diffusion.time_laws import TimeLaw\n"
        "class Steps(Solver):\n    def __init__(self, share: float = 0.5):\n        pass\n"
        "    def steps(self, *a):\n        pass\nclass Law(TimeLaw):\n    def t(self, u):\n        return u\n"
        "    def quantile(self, t):\n        return t\n"
    )
    method = checked(("callbacks.val.method", "mine.Steps")).config["callbacks"]["val"]["init_args"]["method"]
    assert method == {"class_path": "mine.Steps", "init_args": {"share": 0.5}}
    assert checked(("callbacks.val.method", "heun")).config["callbacks"]["val"]["init_args"]["method"] == "heun"
    process = checked(("model.objective.process.t_distribution", "mine.Law")).config["model"]["init_args"]
    assert process["objective"]["init_args"]["process"]["init_args"]["t_distribution"] == {"class_path": "mine.Law"}


METHOD = "callbacks.val.init_args.method: "
LAW = "model.init_args.objective.init_args.process.init_args.t_distribution: "


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("callbacks.val.method", "mine.Nope", METHOD + "mine has no class 'Nope'"),
        ("callbacks.val.method", "nowhere.Steps", METHOD + "no module 'nowhere'"),
        ("callbacks.val.method", "mine.Half", METHOD + "mine.Half is abstract: unknown sampling method"),
        ("callbacks.val.method", "mine.Other", METHOD + "mine.Other is not of the kind that is wanted here: unknown"),
        ("callbacks.val.method", "broken.Steps", METHOD + "importing broken fails: SystemExit: 3"),
        ("model.objective.process.t_distribution", "mine.Nope", LAW + "mine has no class 'Nope'"),
    ],
)
def test_a_class_path_as_plain_text_that_fits_nothing_is_refused_for_its_own_reason(
    stranger: Path, key: str, text: str, message: str
) -> None:
    mine("from t2ikit.diffusion.solvers import Solver\nclass Half(Solver):\n    pass\nclass Other:\n    pass\n")
    Path("broken.py").write_text("import sys\nsys.exit(3)\nclass Steps: pass\n")
    with pytest.raises(ConfigError) as refusal:
        build(checked((key, text)), Path("run"))
    assert str(refusal.value).startswith(message)


def test_a_module_that_ends_the_process_is_refused_and_a_missing_one_says_where_it_is_looked_for(
    stranger: Path,
) -> None:
    mine("import sys\nsys.exit(0)\nclass Flat: pass\n")
    with pytest.raises(ConfigError, match="weighting: importing mine fails: SystemExit: 0"):
        checked(("model.objective.weighting", "mine.Flat"))
    with pytest.raises(ConfigError, match="no module 'nowhere'.* nowhere.py is looked for beside the experiment"):
        checked(("model.objective.weighting", "nowhere.Flat"))


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("model.learning_rate", "t2ikit.optim.AdamW", "learning_rate: t2ikit.optim.AdamW is no LearningRate"),
        ("callbacks.val.metrics", "[t2ikit.optim.AdamW]", "metrics: t2ikit.optim.AdamW is no Metric"),
        ("callbacks.val.guidance", "{weaker: 3}", "a Denoiser or SavedDenoiser or null, got 3"),
        ("trainer.profiler", "{class_path: t2ikit.optim.AdamW}", "trainer.profiler: t2ikit.optim.AdamW is no Profiler"),
        ("trainer.plugins", "[t2ikit.optim.AdamW]", "trainer.plugins: t2ikit.optim.AdamW is no Precision or "),
        ("model.start", "/tmp/x", "of a Start or null, got /tmp/x"),
        ("model.start", "{weights: ema}", "model.init_args.start: missing checkpoint"),
        ("model.start", "{checkpoint: x, fit: bend}", "model.init_args.start.fit: expected one of"),
        ("model.objective.weighting", "VelocityError", "did you mean t2ikit.diffusion.VelocityError?"),
        ("model.objective.weighting", "t2ikit.diffusion.Nope", "weighting: t2ikit.diffusion has no class 'Nope'"),
        ("model.objective.terms", "{a: {class_path: t2ikit.diffusion.terms.Term}}", "Term is abstract: name a class"),
        ("model.denoiser.class_path", "'.a.X'", "denoiser.class_path: expected module.Class, got '.a.X'"),
        ("model.inherited", "3", "takes no 'inherited'"),
        ("model.denoiser", "{class_path: t2ikit.denoisers.CADI, dict_kwargs: {x: 1}}", "unknown key 'dict_kwargs'"),
        ("loggers.a", "3", "loggers.a: expected {class_path: ..., init_args: ...}, got 3"),
        ("loggers.a", "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: 3}", "loggers.a: expected {"),
        ("callbacks.a", "{class_path: t2ikit.callbacks.EMA, init_args: [3]}", "callbacks.a: expected {"),
    ],
)
def test_the_message_names_what_was_wanted(key: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        checked((key, text))
    assert message in str(refusal.value)


def test_the_experiment_of_a_checkpoint_is_looked_at_in_the_same_way(stranger: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.ckpt"
    other = tmp_path / "other"
    other.mkdir()
    (other / "elsewhere.py").write_text("1 / 0")
    sys.path.append(str(other))  # as another experiment of this process has left it
    for denoiser, message in [
        ("stranger.Thing", "--trust stranger"),
        (arguments("stranger.Thing"), "--trust stranger"),
        (arguments("elsewhere.Thing"), "--trust elsewhere"),
        ("torch.load", "names a function, not a class"),
        (arguments(PROCESS, entrypoint="touch", args=[str(stranger)]), "is no Denoiser"),
        (3, "denoiser: expected {class_path"),
    ]:
        model = arguments("t2ikit.module.TextToImage", denoiser=denoiser)
        torch.save({"experiment": {"model": model}, "state_dict": {}}, checkpoint)
        with pytest.raises(ConfigError, match=message):
            load_denoiser(checkpoint)
    for model in ("stranger.Thing", {"class_path": "t2ikit.module.TextToImage", "init_args": 3}, None):
        torch.save({"experiment": {"model": model}, "state_dict": {}}, checkpoint)
        with pytest.raises(ConfigError, match="the model of its experiment is not"):
            load_denoiser(checkpoint)
    torch.save({"experiment": {"model": {"class_path": "x.Y", "init_args": None}}, "state_dict": {}}, checkpoint)
    with pytest.raises(ValueError, match="not a checkpoint of a text-to-image run"):
        load_denoiser(checkpoint)
    assert not stranger.exists()


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=f"checkpoint {tmp_path}/nowhere.ckpt: no such file"):
        load_denoiser("~/nowhere.ckpt")


def test_a_package_in_two_folders_is_strange(stranger: Path) -> None:
    for folder in (stranger.parent, Path.cwd()):
        (folder / "shared_name").mkdir()
    with pytest.raises(ConfigError, match="--trust shared_name"):
        find_class("shared_name.part.Thing", "data.class_path", origins_of())


def test_comparing_two_classes_imports_no_part_of_a_strange_package(stranger: Path) -> None:
    package = stranger.parent / "loaded_package"
    package.mkdir()
    (package / "__init__.py").write_text("class Thing: pass")
    (package / "part.py").write_text(f"open({str(stranger)!r}, 'w')\nfrom loaded_package import Thing")
    __import__("loaded_package")
    merged = merge(arguments("loaded_package.Thing", a=1), {"class_path": "loaded_package.part.Thing"})
    assert merged == {"class_path": "loaded_package.part.Thing"} and not stranger.exists()


def test_a_weaker_network_may_come_from_a_trusted_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--trust`` of the command reaches the checkpoint that guidance names."""
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "distant_network.py").write_text("from t2ikit.denoisers import DiTI as Network\n")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    checkpoint = tmp_path / "run.ckpt"
    node = arguments("distant_network.Network", input_size=4, hidden_size=32, depth=1, num_heads=2, text_dim=8)
    state = {f"denoiser.{name}": value for name, value in DiTI(**node["init_args"]).state_dict().items()}
    model = arguments("t2ikit.module.TextToImage", denoiser=node)
    torch.save({"experiment": {"model": model}, "state_dict": state}, checkpoint)
    sampling = Sampling(guidance=Guidance(2.0, weaker=SavedDenoiser(str(checkpoint), "raw")))
    with pytest.raises(ConfigError, match="--trust distant_network"):
        sampling.filled("cpu")
    guidance = sampling.filled("cpu", Origins(trusted=("distant_network",))).guidance
    assert isinstance(guidance, Guidance) and isinstance(guidance.weaker, DiTI)
