"""Exported models as pipelines of diffusers. Importing this module tells ``DiffusionPipeline`` the class of ours.

diffusers finds the class of a pipeline in its own package only, and other classes by importing their module: with this
module imported, a folder of ``t2ikit export`` needs no code of its own, so ``trust_remote_code`` stays False.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from t2ikit.checkpoints.exported import INDEX, WEIGHTS
from t2ikit.config.errors import ConfigError
from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.encoders.text import MAX_TOKENS, TextEncoder, split_layer
from t2ikit.pictures import Pictures
from t2ikit.run.experiment import origins_of
from t2ikit.run.trained import TrainedModel, load_trained


class PipelineOutput(BaseOutput):
    """What a pipeline returns.

    Attributes:
        images: as PIL has them.
    """

    images: Pictures


class ExportedDenoiser(ModelMixin, ConfigMixin):
    """The trained model of an exported folder, as a component of a pipeline.

    Attributes:
        trained: the same as ``t2ikit.load`` gives.
    """

    config_name = "config.json"  # type: ignore[assignment]

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.trained = trained
        self.module = trained.module

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> ExportedDenoiser:
        """Loads the weights that lie in ``folder``, the ``denoiser`` of an export.

        Of the options, ``dtype`` or ``torch_dtype`` gives the weights another than float32; none is needed.
        """
        root = Path(folder).parent if (Path(folder).parent / INDEX).is_file() else Path(folder)
        if not (root / WEIGHTS).is_file():
            raise ConfigError(f"{root} is no folder of `t2ikit export`: it has no {WEIGHTS}")
        denoiser = cls(load_trained(root, "auto", origins=origins_of(checkpoint=root / WEIGHTS)))
        dtype = options.get("dtype") or options.get("torch_dtype")
        if dtype is not None:
            denoiser.module.to(dtype)
        return denoiser

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Refused: an export is written as a whole.

        Raises:
            NotImplementedError: always; names what to do.
        """
        raise NotImplementedError("save the pipeline with t2ikit export CHECKPOINT DIR, or copy its folder")


class SamplerSettings(SchedulerMixin, ConfigMixin):
    """What a pipeline samples with where a call does not say it.

    Args:
        steps, method, guidance: as ``t2ikit sample`` has them.
        process: class path and arguments of the diffusion process, for people; the weights' own experiment decides.
    """

    @register_to_config
    def __init__(
        self, steps: int = 50, method: str = "ddim", guidance: float = 2.0, process: dict[str, Any] | None = None
    ) -> None:
        pass


class T2IKitPipeline(DiffusionPipeline):
    """Text to images, by the sampler of ``t2ikit sample``: the same picture for the same seed.

    Args:
        denoiser: the trained model.
        scheduler: default settings of the sampler.
        text_encoder, tokenizer, text_encoder_2, ...: those that the export includes; the others come from the Hub.
        vae: the autoencoder, if the export includes it.

    Example:
        >>> import t2ikit.pipeline
        >>> pipeline = DiffusionPipeline.from_pretrained("exported")             # doctest: +SKIP
        >>> pipeline("a large red circle", seed=0).images[0].save("circle.png")  # doctest: +SKIP
    """

    _optional_components = [
        *(f"{kind}{number}" for number in ("", "_2", "_3") for kind in ("text_encoder", "tokenizer")),
        "vae",
    ]

    def __init__(
        self,
        denoiser: ExportedDenoiser,
        scheduler: SamplerSettings,
        text_encoder: Any = None,
        tokenizer: Any = None,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        text_encoder_3: Any = None,
        tokenizer_3: Any = None,
        vae: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(  # type: ignore[attr-defined]
            denoiser=denoiser,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
            vae=vae,
        )
        trained = denoiser.trained
        encoders = [(text_encoder, tokenizer), (text_encoder_2, tokenizer_2), (text_encoder_3, tokenizer_3)]
        references = trained.manifest.text_encoders
        for index, ((model, words), reference) in enumerate(zip(encoders, references, strict=False)):
            if model is not None and words is not None:
                limit, layer = trained.manifest.token_limit or MAX_TOKENS, split_layer(reference.name)[1]
                trained.loaded_encoders[index] = TextEncoder(model.eval(), words, reference, limit, layer)
        if vae is not None and isinstance(trained.module.space, LatentSpace):
            trained.module.space.use(vae.eval(), trained.manifest.autoencoder)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        method: str | None = None,
        batch_size: int = 16,
    ) -> PipelineOutput:
        """Images of prompts. The networks run in the dtype of their weights; the sampler keeps x in float32.

        Args:
            prompt: one or several.
            height, width: pixels of an image, one of the sizes that the denoiser takes; None takes its own.
            num_inference_steps: steps of the sampler.
            guidance_scale: of diffusers, which is 1 + w for the w of ``t2ikit sample --guidance``.
            negative_prompt: prompt that guidance moves away from, or one for each prompt; None is the empty one.
            num_images_per_prompt: images of each.
            seed: of the noise, as ``t2ikit sample --seed``.
            generator: whose initial seed is taken in place of ``seed``; it is not advanced, so that a second call gives
                the same images. Or one for each image, which is then the first image of that seed.
            method: sampler.
            batch_size: images sampled at once; those of several generators are sampled one by one.

        Raises:
            ValueError: a number of negative prompts or generators that does not fit, a negative prompt without
                guidance, or a size that the denoiser does not take.
        """
        denoiser, scheduler = self.denoiser, self.scheduler  # type: ignore[attr-defined]
        settings, module = scheduler.config, denoiser.module
        module.to(next(module.parameters()).device)  # Lightning notes a device in this call only
        options: dict[str, Any] = {
            "steps": settings.steps if num_inference_steps is None else num_inference_steps,
            "guidance": settings.guidance if guidance_scale is None else guidance_scale - 1.0,
            "method": settings.method if method is None else method,
            "size": self._size(height, width),
            "batch_size": batch_size,
        }
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = _each(negative_prompt, len(prompts))
        if any(negatives) and options["guidance"] == 0.0:
            raise ValueError("negative_prompt acts through guidance: give guidance_scale another value than 1")
        sample, count = denoiser.trained.sample, num_images_per_prompt
        if generator is None or isinstance(generator, torch.Generator):
            first = seed if generator is None else generator.initial_seed()
            return PipelineOutput(images=sample(prompts, count=count, seed=first, negative=negatives, **options))
        if len(generator) != len(prompts) * count:
            raise ValueError(
                f"generator: one for all images or one for each of the {len(prompts) * count}; got {len(generator)}"
            )
        rows = [row for row in zip(prompts, negatives, strict=True) for _ in range(count)]
        images = Pictures([], columns=count if count > 1 and len(prompts) > 1 else None)
        for (text, negative), own in zip(rows, generator, strict=True):
            images += sample(text, seed=own.initial_seed(), negative=negative, **options)
        return PipelineOutput(images=images)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int] | None:
        """(H, W) of x_0 for an image of so many pixels.

        Raises:
            ValueError: the denoiser takes no such size; names those that it takes.
        """
        if height is None and width is None:
            return None
        module = self.denoiser.module  # type: ignore[attr-defined]
        pixels = module.space.downsampling
        sizes = {(rows * pixels, columns * pixels): (rows, columns) for _, rows, columns in module.denoiser.shapes}
        own = next(iter(sizes))
        wanted = own[0] if height is None else height, own[1] if width is None else width
        if wanted not in sizes:
            listed = ", ".join(f"{rows}x{columns}" for rows, columns in sizes)
            raise ValueError(
                f"height {wanted[0]}, width {wanted[1]}: the model makes images of {listed} (height x width)"
            )
        return sizes[wanted]


def _each(negative: str | Sequence[str] | None, count: int) -> list[str]:
    """The negative prompt of each of ``count`` prompts.

    Raises:
        ValueError: as many are not given.
    """
    if negative is None or isinstance(negative, str):
        return [negative or ""] * count
    if len(negative) != count:
        raise ValueError(f"negative_prompt: one for all prompts or one for each of the {count}; got {len(negative)}")
    return list(negative)


# Where DiffusionPipeline.from_pretrained looks for the class.
diffusers.T2IKitPipeline = T2IKitPipeline  # type: ignore[attr-defined]
