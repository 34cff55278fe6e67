"""``t2ikit import``: released weights become a run folder, which every command takes as one of its own.

config.yaml                     the experiment that the weights are of, with the sizes of their network
checkpoints/step-XXXXXXXX.ckpt  weights, averages, experiment, what its data would be: nothing to go on with
environment.yaml, finished      as of any run
imported.yaml                   where the weights come from, and what was chosen
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

import t2ikit
from t2ikit.checkpoints.files import load_weights, read_weights
from t2ikit.checkpoints.released import Coherence, UpstreamWeights, read_upstream, sizes_of, unwrapped
from t2ikit.checkpoints.runs import IMPORTED, finish
from t2ikit.checkpoints.saving import write_checkpoint
from t2ikit.config.compose import compose
from t2ikit.config.errors import ConfigError
from t2ikit.config.files import find_experiment
from t2ikit.config.merging import Override
from t2ikit.config.origins import Origins
from t2ikit.config.values import to_yaml
from t2ikit.encoders.text import DEFAULT_TEXT_ENCODER, MAX_TOKENS, TOKENIZER_FILES
from t2ikit.files import parse_json, partial_of, publish, recover, require_folder, write_whole
from t2ikit.module import TextToImage
from t2ikit.pretrained import EMBEDDED, EncoderReference, find_pretrained, sha256_of, weight_files
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.run.cost import decays_of
from t2ikit.run.experiment import USER_ERRORS, Plan, check
from t2ikit.run.folder import write_config
from t2ikit.run.kept import keep

EXPERIMENTS = {
    "Lucasdegeorge/CAD-I": "cad_i_cmall",
    "Lucasdegeorge/CAD-I_TA": "cad_i_ta",
}
"""The experiment that a repository of the Hub is the result of, as its authors say."""
OTHERWISE = "cad_i_ta"


@dataclass(frozen=True)
class Request:
    """What is imported.

    Attributes:
        source: a file, a folder with one, or a repository of the Hub.
        revision: commit, tag or branch of the repository.
        experiment: a file or a name; None takes that of the repository, or ``OTHERWISE``.
        overrides: over the experiment and the sizes of the weights.
        coherence: see :func:`~t2ikit.checkpoints.released.from_upstream`.
        text_encoder: folder or repository; None is the papers'.
        autoencoder: folder or repository; None is that of the experiment.
        step: optimizer steps of the weights; None takes those that the file names, or 0.
        command: as the user typed it.
    """

    source: str
    revision: str | None = None
    experiment: Path | None = None
    overrides: Sequence[Override] = ()
    coherence: Coherence = "auto"
    text_encoder: str | None = None
    autoencoder: str | None = None
    step: int | None = None
    command: str = "t2ikit import"

    @property
    def asked(self) -> str:
        """The experiment as it was named, or as the repository says."""
        return str(self.experiment or EXPERIMENTS.get(self.source, OTHERWISE))

    @property
    def named(self) -> Path:
        """The file of the experiment."""
        return find_experiment(self.asked)


def import_released(request: Request, folder: Path, origins: Origins) -> dict[str, Any]:
    """Writes the run folder, whole or not at all.

    Args:
        request: what is imported.
        folder: the run folder.
        origins: which modules the experiment may name.

    Returns:
        The content of ``imported.yaml``.

    Raises:
        ConfigError, FileNotFoundError, ValueError: no such weights, weights of another layout or another network than
            the experiment's, or a folder that is there already.
    """
    if folder.suffix in (".ckpt", ".safetensors"):
        raise ConfigError(f"{folder}: a run folder is written, with a checkpoint in it: {folder.with_suffix('')}")
    if folder.exists():
        raise ConfigError(f"{folder} is there already: give another name, such as {folder.with_name('version_1')}")
    require_folder(folder, "the run folder")
    file, reference, settings = _find(request)
    content = read_weights(file)
    if "experiment" in content:
        raise ConfigError(f"{file} is a checkpoint of a run or an export already: every command takes it as it is")
    try:
        read = read_upstream(content, request.coherence)
        sizes = sizes_of(read.weights, settings)
        _refuse_infinite(read.weights)
        step = _step(content) if request.step is None else request.step
    except (ValueError, KeyError) as error:
        lacking = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ConfigError(f"{file}: {lacking}") from error
    plan = _plan(request, sizes, origins)
    module = plan.model.build(USER_ERRORS)
    if not isinstance(module, TextToImage):
        raise ConfigError(f"{request.named}: its model is no t2ikit.module.TextToImage")
    if module.space.channels not in (0, sizes["in_channels"]):
        raise ConfigError(
            f"{file}: these weights are of images of {sizes['in_channels']} channels, {type(module.space).__name__} of "
            f"{request.named} gives {module.space.channels}: name another --experiment, or set --model.space.channels"
        )
    try:
        averages = _load(module, content, read)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error
    encoder = _encoder(request.text_encoder or DEFAULT_TEXT_ENCODER, "--text-encoder", TOKENIZER_FILES)
    facts = {
        "source": reference.name,
        "revision": reference.revision,
        "file": file.name,
        "sha256": reference.sha256,
        "weights": "averages and raw ones" if read.prefix and averages is not None else "one set, as both",
        "coherence": read.choice or "no coherence token",
        "experiment": request.asked,
        "step": step,
    }
    _describe(module, facts, encoder)
    module.experiment = plan.config
    state = module.state_dict()
    names = [name for name, parameter in module.denoiser.named_parameters() if parameter.requires_grad]
    averages = averages or {name: state[f"denoiser.{name}"] for name in names}
    profiles = {str(decay): averages for decay in decays_of(plan)[:1]}
    checkpoint: dict[str, Any] = {"state_dict": state, "global_step": step, "imported_from": facts}
    checkpoint["callbacks"] = {"EMA": {"step": step, "profiles": profiles}} if profiles else {}
    module.on_save_checkpoint(checkpoint)
    _write(folder, plan, checkpoint, facts, request.command)
    return facts


def _find(request: Request) -> tuple[Path, EncoderReference, Mapping[str, Any]]:
    """The weight file, which one it is, and the settings of the released program beside it."""
    file = Path(request.source).expanduser()
    if file.is_file():
        if request.revision is not None:
            raise ConfigError(f"--revision {request.revision}: {file} is a file, which has none")
        reference = EncoderReference(str(file.resolve()), None, sha256_of(file))
    else:
        found = find_pretrained(_place(request.source), request.revision, "SOURCE")
        reference, files = found.reference, weight_files(found.folder)
        if len(files) > 1:
            names = ", ".join(path.name for path in files)
            raise ConfigError(f"{request.source} holds several files of weights: name one of {names}")
        file = files[0]
    path = file.parent / "config.json"
    try:
        settings = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{path}: expected the settings of the released program as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected the settings of the released program by name, got {settings!r:.80}")
    return file, reference, settings


def _step(content: Mapping[str, Any]) -> int:
    """The optimizer steps that a checkpoint names, or 0."""
    step = content.get("global_step", 0)
    if type(step) is not int or step < 0:
        raise ValueError(f"its global_step is {step!r}: give --step")
    return step


def _refuse_infinite(weights: Mapping[str, Tensor]) -> None:
    broken = [name for name, value in weights.items() if not bool(value.isfinite().all())]
    if broken:
        raise ValueError(f"{broken[0]} is not finite (of {len(broken)} such tensors): no image comes of these weights")


def _plan(request: Request, sizes: Mapping[str, Any], origins: Origins) -> Plan:
    """The experiment with the network of these sizes."""
    arguments: dict[str, Any] = {
        "denoiser": {"class_path": "t2ikit.denoisers.CADI", "init_args": dict(sizes)},
    }
    if request.autoencoder is not None:
        arguments["space"] = {"init_args": {"autoencoder": _place(request.autoencoder), "revision": None}}
    config = compose(request.named, request.overrides, overlays=[{"model": {"init_args": arguments}}])
    data = (config.get("data") or {}).get("init_args") or {}
    if request.text_encoder is not None and "text_encoder" in data:
        data["text_encoder"] = _place(request.text_encoder)
    return check(config, origins)


def _load(module: TextToImage, content: Mapping[str, Any], read: UpstreamWeights) -> dict[str, Tensor] | None:
    """Gives the denoiser the raw weights; the averages where the file holds both, else None."""
    load_weights(module.denoiser, read.weights)
    stored = content.get("state_dict", content)
    raw = {name: value for name, value in stored.items() if not unwrapped(name).startswith("ema_network.")}
    if read.prefix != "ema_network." or not any(unwrapped(name).startswith("network.") for name in raw):
        return None
    averages = {name: parameter.detach().clone() for name, parameter in module.denoiser.named_parameters()}
    load_weights(module.denoiser, read_upstream(raw, "keep" if read.coherence else "drop").weights)
    return averages


def _describe(module: TextToImage, facts: Mapping[str, Any], encoder: EncoderReference) -> None:
    """Gives the module the manifest that its data would have, so far as it is known."""
    space, shape, width = module.space, module.denoiser.input_shape, module.denoiser.text_dim
    assert isinstance(width, int)  # the layout has one text encoder
    name = getattr(space, "autoencoder", None)
    manifest = Manifest(
        space.kind,
        shape if space.kind == "pixels" else (2, *shape),
        texts={"t5": TextSource(width, encoder)},
        token_limit=MAX_TOKENS,
        autoencoder=None if name is None else _encoder(name, "--autoencoder"),
        source=f"unknown: imported from {facts['source']}",
    )
    module.check_manifest(manifest)
    _refuse_width(encoder, width)


def _refuse_width(encoder: EncoderReference, width: int) -> None:
    """Refuses a text encoder of a local folder whose states have another width."""
    if not encoder.sha256:
        return
    from transformers import AutoConfig

    dim = AutoConfig.from_pretrained(encoder.name, trust_remote_code=False).get_text_config().hidden_size
    if dim != width:
        raise ConfigError(f"--text-encoder {encoder.name}: its states are {dim} wide, these weights read {width}")


def _encoder(name: str, option: str, files: Sequence[str] = ()) -> EncoderReference:
    """A local model by its hash; one of the Hub by its name alone, since released weights do not say which it was."""
    place = _place(name)
    if place != name or place.startswith((EMBEDDED, ".", "/", "~")):
        return find_pretrained(place, None, option, files).reference
    return EncoderReference(name, "main", "")


def _place(name: str) -> str:
    """The absolute path of a local folder; the name of anything else as it is."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def _write(folder: Path, plan: Plan, checkpoint: Mapping[str, Any], facts: Mapping[str, Any], command: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    partial = partial_of(folder)
    try:
        partial.mkdir()
        write_checkpoint(checkpoint, partial / "checkpoints" / f"step-{checkpoint['global_step']:08d}.ckpt")
        head = f"# t2ikit {t2ikit.__version__}: {' '.join(command.split())}\n"
        write_config(partial, head + to_yaml(plan.config), resumed=False)
        keep(partial, plan.config, command, None, created=True)
        write_whole(partial / IMPORTED, yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True, width=120))
        finish(partial, plan.config)
        publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
