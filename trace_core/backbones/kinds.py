"""What the library has to know about a kind of model apart from its layers."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Kind:
    """A kind of model within a family.

    Attributes:
        title: the name that people use.
        architecture: ``modelspec.architecture`` of a LoRA for it.
        base_version: ``ss_base_model_version`` of a LoRA for it.
        size: pixels of a side of its pictures.
        steps: sampling steps of a picture.
        cfg: classifier-free guidance of a picture; 1 for a model with distilled or without guidance.
        sampler, scheduler: names as in ComfyUI's KSampler.
        training_cfg: classifier-free guidance of the trajectories of a finetune.
        clip_type: member of ``comfy.sd.CLIPType`` that its text encoder files are loaded with.
        encoders: text encoder files that it needs.
        transformer: whether the objectives' values for transformers apply.
        embeds_guidance: whether the network reads a guidance strength, which amplifies the prompt.
        references: whether it can also read reference pictures.
        pads_left: whether the model puts empty rows before a prompt's rows.
    """

    title: str
    architecture: str
    base_version: str
    size: int = 1024
    steps: int = 20
    cfg: float = 1.0
    sampler: str = "euler"
    scheduler: str = "simple"
    training_cfg: float = 1.0
    clip_type: str = "STABLE_DIFFUSION"
    encoders: str = "one text encoder"
    transformer: bool = True
    embeds_guidance: bool = False
    references: bool = False
    pads_left: bool = False

    def of_few_steps(self) -> Kind:
        """The same kind distilled by latent consistency (LCM, Luo et al., arXiv 2310.04378)."""
        return replace(self, steps=8, cfg=1.0, training_cfg=1.0, sampler="lcm", scheduler="sgm_uniform")
