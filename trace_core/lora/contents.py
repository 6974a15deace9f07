"""What a file of weights is, told by the names of its tensors, for messages about the wrong file."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: layer names that occur in every text encoder: CLIP, OpenCLIP, T5, language models
TEXT_LAYERS = ("encoder.layers.", "resblocks.", "encoder.block.", "model.layers.")
#: kinds of files in the order in which they are looked for: a LoRA's names contain those of its model
_KINDS: tuple[tuple[str, re.Pattern], ...] = (
    (
        "a LoRA",
        re.compile(
            r"[._]lora[._](up|down|A|B|mid|magnitude)|lora_linear_layer|hada_w|lokr_w|dora_scale|[._]oft_"
            r"|\.diff(_b)?$"
        ),
    ),
    ("a ControlNet", re.compile(r"^(control_model|controlnet_\w+)\.|^zero_convs\.")),
    ("a textual inversion", re.compile(r"^(emb_params|string_to_param.*|<[^>]*>)$")),
    (
        "a model",
        re.compile(
            r"^(model\.diffusion_model|diffusion_model|net)\."
            r"|^(input_blocks|output_blocks|down_blocks|up_blocks|double_blocks|single_blocks|joint_blocks"
            r"|transformer_blocks|single_transformer_blocks)\.\d"
        ),
    ),
    (
        "a VAE",
        re.compile(r"^((first_stage_model|vae)\.)?(taesd_)?(decoder|encoder)\.(conv_in|mid|up|down|\d)\b"),
    ),
    ("a text encoder", re.compile("|".join(map(re.escape, TEXT_LAYERS)) + r"|^shared\.")),
)


def contents(keys: Iterable[str]) -> str:
    """Which kind of file has tensors of these names, such as "a VAE"; empty if it cannot be told."""
    keys = list(keys)
    return next((kind for kind, mark in _KINDS if any(map(mark.search, keys))), "")
