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
        """Loads the weights that lie in ``folder``, the ``denoiser`` of an export; of the options none is needed."""
        root = Path(folder).parent if (Path(folder).parent / INDEX).is_file() else Path(folder)
        if not (root / WEIGHTS).is_file():
            raise ConfigError(f"{root} is no folder of `t2ikit export`: it has no {WEIGHTS}")
        return cls(load_trained(root, "auto", origins=origins_of(checkpoint=root / WEIGHTS)))

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
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        num_images_per_prompt: int = 1,
        seed: int = 0,
        generator: torch.Generator | None = None,
        method: str | None = None,
        batch_size: int = 16,
    ) -> PipelineOutput:
        """Images of prompts.

        Args:
            prompt: one or several.
            num_inference_steps: steps of the sampler.
            guidance_scale: of diffusers, which is 1 + w for the w of ``t2ikit sample --guidance``.
            negative_prompt: prompt that guidance moves away from.
            num_images_per_prompt: images of each.
            seed: of the noise, as ``t2ikit sample --seed``.
            generator: whose initial seed is taken in place of ``seed``.
            method: sampler.
            batch_size: images sampled at once.
        """
        denoiser, scheduler = self.denoiser, self.scheduler  # type: ignore[attr-defined]
        settings, module = scheduler.config, denoiser.module
        module.to(next(module.parameters()).device)  # Lightning notes a device in this call only
        return PipelineOutput(
            images=denoiser.trained.sample(
                prompt,
                count=num_images_per_prompt,
                seed=seed if generator is None else generator.initial_seed(),
                steps=settings.steps if num_inference_steps is None else num_inference_steps,
                guidance=settings.guidance if guidance_scale is None else guidance_scale - 1.0,
                method=settings.method if method is None else method,
                negative=negative_prompt,
                batch_size=batch_size,
            )
        )


# Where DiffusionPipeline.from_pretrained looks for the class.
diffusers.T2IKitPipeline = T2IKitPipeline  # type: ignore[attr-defined]
