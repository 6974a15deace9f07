"""Layer names in the key forms of LoRA files: ComfyUI's (the network's own), kohya's, diffusers'.

Sources of the correspondence: ComfyUI's ``comfy/utils.py`` (``unet_to_diffusers``, ``flux_to_diffusers``),
and diffusers' ``scripts/convert_original_stable_diffusion_to_diffusers.py`` and
``convert_flux_to_diffusers.py``. This module handles only strings; :mod:`.formats` handles the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
          "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}  # fmt: skip
UNET = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
        "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
        "out.0": "conv_norm_out",
        "out.2": "conv_out"}  # fmt: skip

#: FLUX's layer -> the layers of diffusers that it concatenates along its rows, in order
FLUX = {"txt_in": ("context_embedder",), "img_in": ("x_embedder",), "final_layer.linear": ("proj_out",),
        "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
        "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
        "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
        "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
        "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",)}  # fmt: skip
DOUBLE = {"img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.proj": ("attn.to_out.0",),
          "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
          "txt_attn.proj": ("attn.to_add_out",),
          "img_mlp.0": ("ff.net.0.proj",), "img_mlp.2": ("ff.net.2",), "txt_mlp.0": ("ff_context.net.0.proj",
          ),
          "txt_mlp.2": ("ff_context.net.2",), "img_mod.lin": ("norm1.linear",),
          "txt_mod.lin": ("norm1_context.linear",)}  # fmt: skip
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
#: Its halves are shift and scale, but scale and shift in diffusers
SWAPPED = "final_layer.adaLN_modulation.1"

#: words of a flattened name that contain an underscore
WORDS = ("down_blocks up_blocks mid_block input_blocks middle_block output_blocks transformer_blocks "
         "single_transformer_blocks double_blocks single_blocks to_q to_k to_v to_out to_add_out "
         "add_q_proj add_k_proj add_v_proj proj_in proj_out proj_mlp time_emb_proj conv_shortcut conv_in "
         "conv_out conv_norm_out emb_layers in_layers out_layers skip_connection time_embed label_emb "
         "time_embedding add_embedding linear_1 linear_2 img_attn txt_attn img_mlp txt_mlp img_mod txt_mod "
         "img_in txt_in time_in vector_in guidance_in in_layer out_layer final_layer adaLN_modulation "
         "ff_context context_embedder x_embedder time_text_embed text_embedder timestep_embedder "
         "guidance_embedder norm1_context norm_out").split()  # fmt: skip
TOKEN = re.compile(f"({'|'.join(sorted(WORDS, key=len, reverse=True))}|[A-Za-z0-9]+)(?:_|$)")

IN_DIFFUSERS_UNET = re.compile(
    r"^(down_blocks|up_blocks|mid_block|time_embedding|add_embedding|conv_in|conv_out|conv_norm_out)\b"
)
IN_DIFFUSERS_FLUX = re.compile(
    r"^(transformer_blocks|single_transformer_blocks|time_text_embed|context_embedder|x_embedder|norm_out)\b|^proj_out$"
)
OWN = re.compile(
    r"^(input_blocks|middle_block|output_blocks|time_embed|label_emb|out|double_blocks|single_blocks|txt_in|img_in|time_in|"
    r"vector_in|guidance_in|final_layer)\.|^(txt_in|img_in)$"
)


def unflattened(name: str) -> str | None:
    """``down_blocks_0_attentions_0_proj_in`` -> ``down_blocks.0.attentions.0.proj_in``; None if unknown."""
    words, at = [], 0
    while at < len(name):
        found = TOKEN.match(name, at)
        if not found:
            return None
        words.append(found[1])
        at = found.end()
    return ".".join(words)


# ------------------------------------------------------------------------------------------- UNets


def blocks_per_level(own: Iterable[str]) -> int | None:
    """Residual blocks per level, from layer names in ComfyUI's form: 2 in every SD; None if unclear."""
    places = set()
    for name in own:
        found = re.match(r"input_blocks\.(\d+)\.(\d+)\.(op\b)?", name)
        if found and int(found[1]):
            places.add((int(found[1]) - 1, bool(found[3])))
    fits = lambda count: all((n % (count + 1) == count) == down for n, down in places)  # noqa: E731
    return next(filter(fits, (2, 1, 3)), None)


def unet_to_diffusers(name: str, count: int) -> str | None:
    """diffusers' name of a UNet layer, for ``count`` residual blocks per level; None if there is none."""
    if name in UNET:
        return UNET[name]
    found = re.match(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)$", name)
    if found:
        down = found[1] == "input"
        level, place = divmod(int(found[2]) - down, count + 1)
        block, part, rest = f"{'down' if down else 'up'}_blocks.{level}", int(found[3]), found[4]
        if rest in ("op", "conv"):
            return f"{block}.{'downsamplers.0.conv' if down else 'upsamplers.0.conv'}"
        if part == 1:
            return f"{block}.attentions.{place}.{rest}"
        return f"{block}.resnets.{place}.{RESNET[rest]}" if part == 0 and rest in RESNET else None
    found = re.match(r"middle_block\.([012])\.(.+)$", name)
    if found:
        if found[1] == "1":
            return f"mid_block.attentions.0.{found[2]}"
        return f"mid_block.resnets.{int(found[1]) // 2}.{RESNET[found[2]]}" if found[2] in RESNET else None
    return None


def unet_from_diffusers(names: Iterable[str]) -> dict[str, str | None]:
    """ComfyUI's names of UNet layers, by diffusers' names. All names together show the blocks per level."""
    names = list(names)
    count = _count(names)
    attended = {m[1] for name in names if (m := re.match(r"up_blocks\.(\d+)\.attentions\.", name))}
    return {name: _unet_own(name, count, attended) for name in names}


def _count(names: list[str]) -> int:
    """Blocks per level: two, unless every level has one block down and two up."""
    places = {"down": [0], "up": [0]}
    for name in names:
        found = re.match(r"(down|up)_blocks\.\d+\.(?:attentions|resnets)\.(\d+)\.", name)
        if found:
            places[found[1]].append(int(found[2]))
    down, up = max(places["down"]), max(places["up"])
    one = len(places["down"]) > 1 and len(places["up"]) > 1 and down == 0 and up == 1
    return 1 if one else max(2, down + 1, up)


def _unet_own(name: str, count: int, attended: set[str]) -> str | None:
    basic = {theirs: own for own, theirs in UNET.items()}
    if name in basic:
        return basic[name]
    resnet = {theirs: own for own, theirs in RESNET.items()}
    found = re.match(
        r"(down|up)_blocks\.(\d+)\.(attentions|resnets|downsamplers|upsamplers)\.(\d+)\.(.+)$", name
    )
    if found:
        direction, level, what, place, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        first = level * (count + 1) + (direction == "down")
        block = f"{'input' if direction == 'down' else 'output'}_blocks"
        if what == "downsamplers":
            return f"{block}.{first + count}.0.op"
        if what == "upsamplers":
            return f"{block}.{first + count}.{2 if found[2] in attended else 1}.conv"
        if what == "attentions":
            return f"{block}.{first + place}.1.{rest}"
        return f"{block}.{first + place}.0.{resnet[rest]}" if rest in resnet else None
    found = re.match(r"mid_block\.(attentions|resnets)\.([01])\.(.+)$", name)
    if found and found[1] == "attentions":
        return f"middle_block.1.{found[3]}"
    return f"middle_block.{2 * int(found[2])}.{resnet[found[3]]}" if found and found[3] in resnet else None


# ------------------------------------------------------------------------------------------- FLUX.1


def flux_to_diffusers(name: str) -> tuple[str, ...] | None:
    """The layers of diffusers that a FLUX layer concatenates, in row order; None if there are none."""
    if name in FLUX:
        return FLUX[name]
    found = re.match(r"(double|single)_blocks\.(\d+)\.(.+)$", name)
    parts = (DOUBLE if found[1] == "double" else SINGLE).get(found[3]) if found else None
    if parts is None:
        return None
    block = "transformer_blocks" if found[1] == "double" else "single_transformer_blocks"
    return tuple(f"{block}.{found[2]}.{part}" for part in parts)


def flux_from_diffusers(name: str) -> tuple[str, int] | None:
    """The FLUX layer that contains a layer of diffusers, and the position in it."""
    for own, parts in FLUX.items():
        if name in parts:
            return own, 0
    found = re.match(r"(single_)?transformer_blocks\.(\d+)\.(.+)$", name)
    for own, parts in (SINGLE if found[1] else DOUBLE).items() if found else ():
        if found[3] in parts:
            return f"{'single' if found[1] else 'double'}_blocks.{found[2]}.{own}", parts.index(found[3])
    return None


def shares(own: str) -> tuple[int, ...]:
    """Relative row counts of a FLUX layer's components: queries, keys and values 1 each, the MLP 4."""
    count = len(flux_to_diffusers(own) or (own,))
    return (1, 1, 1, 4)[:count] if count > 1 else (1,)
