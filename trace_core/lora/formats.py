"""Key forms of LoRA files: reading into ``diffusion_model.<module>`` factors, and writing other forms."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import LoraError
from . import keys as names
from .contents import contents

PREFIX = "diffusion_model."
FORMATS = {
    "comfyui": "the network's own names, as this library writes them",
    "kohya": "lora_unet_..., as sd-scripts writes them: AUTOMATIC1111, Forge, ComfyUI",
    "diffusers": "unet.... or transformer...., as load_lora_weights of diffusers reads them",
}
#: metadata key of an exported file: original ranks, sorted by ComfyUI's layer names, before padding to one
#: rank
RANKS = "trace.ranks"

AGAIN = "; download or make it again"

SUFFIX = re.compile(
    r"^(?P<name>[A-Za-z0-9_.]+?)\.(?:(?P<old>lora|lora_linear_layer)\.(?P<way>up|down)\.weight|lora_(?P<part>up|down|A|B)(?:\.default)?\.weight|"
    r"(?P<alpha>alpha))$"
)
PROCESSOR = re.compile(
    r"^(?P<name>[A-Za-z0-9_.]+)\.processor\.(?P<layer>to_q|to_k|to_v|to_out)_lora\.(?P<way>up|down)\.weight$"
)
PART = {"up": "up", "down": "down", "A": "down", "B": "up"}
TEXT_ENCODER = re.compile(r"^(lora_te\d?_|text_encoder|text_encoders\.|lora_prior_te|clip_[lg]\.|t5xxl\.)")
OTHER_KINDS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lokr_": "LoKr", "hada_": "LoHa",
    "oft_": "OFT", "lora_mid": "a CP-LoRA",
               ".diff_": "a difference of whole weights"}  # fmt: skip
CONVOLUTION = re.compile(
    r"\.(op|conv|skip_connection|in_layers\.2|out_layers\.3)$|^input_blocks\.0\.0$|^out\.2$"
)


# ------------------------------------------------------------------------------------------- reading


def read(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors of a LoRA with ComfyUI's, kohya's, diffusers' or PEFT's keys, with scale 1.

    The result is ``{diffusion_model.<module>: (up, down)}``.

    Raises:
        LoraError: naming the first key that is unknown, missing, of a wrong shape, or not finite.
    """
    if (found := contents(state)) not in ("", "a LoRA"):
        raise LoraError(f"this file is {found}, not a LoRA; choose an erasure LoRA")
    parts: dict[str, dict[str, Tensor]] = {}
    keys: dict[str, str] = {}  # first key of each layer
    for key, tensor in state.items():
        name, part = _split(key)
        keys.setdefault(name, key)
        if part in parts.setdefault(name, {}):
            raise LoraError(f"'{key[:80]}' is a second {part} for the same layer; the file is damaged{AGAIN}")
        parts[name][part] = tensor
    # names behind ComfyUI's prefix are the network's own; Qwen-Image's are those of FLUX in diffusers
    other = [n for n in parts if not keys[n].startswith(PREFIX)]
    own_names = names.unet_from_diffusers([n for n in other if names.IN_DIFFUSERS_UNET.match(n)])
    modules: dict[str, tuple[Tensor, Tensor]] = {}
    fused: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    places = {}
    for name in parts:
        flux = name in other and names.IN_DIFFUSERS_FLUX.match(name)
        places[name] = names.flux_from_diffusers(name) if flux else (own_names.get(name, name), None)
        if places[name] is None or places[name][0] is None:
            raise _not_ours(keys[name], "no network of ComfyUI has a layer of that name")
    for name, part in parts.items():
        shown = re.sub(r"\.(lora[_.].*|alpha)$", "", keys[name])[:120]
        pair, (own, number) = factors(shown, part), places[name]
        if number is not None:
            fused.setdefault(own, {})[number] = pair
        elif PREFIX + own in modules:
            raise LoraError(
                f"'{shown}' is a layer that the file also has under another name; it is damaged{AGAIN}"
            )
        else:
            modules[PREFIX + own] = pair
    for own, components in fused.items():
        if PREFIX + own in modules:
            raise LoraError(f"{own} is in the file under two names; it is damaged{AGAIN}")
        modules[PREFIX + own] = _side_by_side(own, components)
    return _without_padding(modules, metadata)


def _split(key: str) -> tuple[str, str]:
    """The dotted layer name of a key, in the network's or diffusers' naming, and its tensor type."""
    if TEXT_ENCODER.match(key):
        raise _not_ours(key, "it changes the text encoder, but an erasure changes only the denoiser")
    other = next((kind for mark, kind in OTHER_KINDS.items() if mark in f"{key}_"), None)
    if other:
        raise _not_ours(key, f"it belongs to {other}, not to a plain LoRA")
    match, part = PROCESSOR.match(key), None
    if match:
        name, part = (
            f"{match['name']}.{match['layer']}{'.0' if match['layer'] == 'to_out' else ''}",
            match["way"],
        )
    else:
        match = SUFFIX.match(key)
        if match:
            name, part = match["name"], "alpha" if match["alpha"] else PART[match["way"] or match["part"]]
            name = name.removesuffix(".lora") if match["alpha"] else name
    plain = _plain(name) if match else None
    if plain is None:
        raise _not_ours(key)
    return plain, part


def _not_ours(key: str, because: str = "") -> LoraError:
    return LoraError(
        f"'{key[:80]}' is not a key of an erasure LoRA; use the stock LoRA loader for this "
        f"file{': ' if because else ''}{because}"
    )


def _plain(name: str) -> str | None:
    """A layer's dotted name without its prefix; None if the form is unknown."""
    if name.startswith(PREFIX):
        return name[len(PREFIX) :] or None
    for prefix in ("lora_unet_", "lora_transformer_", "lycoris_"):
        if name.startswith(prefix):
            dotted = names.unflattened(name[len(prefix) :])
            known = dotted and any(
                form.match(dotted) for form in (names.OWN, names.IN_DIFFUSERS_UNET, names.IN_DIFFUSERS_FLUX)
            )
            return dotted if known else None
    name = name.removeprefix("base_model.model.").removeprefix("model.diffusion_model.").removeprefix("unet.")
    name = name.removeprefix("transformer.")
    return (
        name
        if any(form.match(name) for form in (names.OWN, names.IN_DIFFUSERS_UNET, names.IN_DIFFUSERS_FLUX))
        else None
    )


def factors(module: str, part: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """``up [out, r]`` and ``down [r, in]`` of one layer, with alpha in ``up``.

    Convolutions are flattened, and float8 becomes float16.

    Raises:
        LoraError: naming the layer.
    """
    up, down, alpha = part.get("up"), part.get("down"), part.get("alpha")
    if up is None or down is None:
        raise LoraError(
            f"{module} has no lora_{'up' if up is None else 'down'}; the file is incomplete{AGAIN}"
        )
    if not all(isinstance(tensor, Tensor) for tensor in part.values()):
        raise LoraError(f"{module} has a lora_up, lora_down or alpha that is not a tensor{AGAIN}")
    up, down = _at_least_16_bits(up), _at_least_16_bits(down)
    if up.ndim == down.ndim == 4 and up.shape[2:] == (1, 1):
        up, down = up.flatten(1), down.flatten(1)
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0] or down.shape[0] == 0:
        raise LoraError(
            f"{module} has factors of shapes {tuple(up.shape)} and {tuple(down.shape)}, which do not fit"
            f"{AGAIN}"
        )
    if not (up.is_floating_point() and down.is_floating_point()):
        raise LoraError(f"{module} has factors of type {up.dtype}; they must be floating point{AGAIN}")
    if not (torch.isfinite(up).all() and torch.isfinite(down).all()):
        raise LoraError(f"{module} contains NaN or infinite values; the file is damaged{AGAIN}")
    if alpha is None:
        return up, down
    if alpha.numel() != 1:
        raise LoraError(f"{module} has an alpha of {alpha.numel()} numbers; it must be one{AGAIN}")
    rank = torch.tensor(float(down.shape[0]))
    # a converter may have rounded alpha with the weights
    if alpha.float().item() == rank.to(alpha.dtype).float().item():
        return up, down
    scaled = (up.float() * (alpha.float().item() / rank.item())).to(up.dtype)
    if not torch.isfinite(scaled).all():
        raise LoraError(
            f"{module} has an alpha of {alpha.float().item():g}, which exceeds the range of {up.dtype}; the "
            "file is damaged: download or make it again"
        )
    return scaled, down


def _at_least_16_bits(tensor: Tensor) -> Tensor:
    """8-bit floats as float16, which represents them exactly. torch supports few operations on 8 bits."""
    return tensor.to(torch.float16) if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _side_by_side(own: str, parts: Mapping[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One layer from several of diffusers' layers, exactly.

    A ``down`` that all share is stored once. Missing layers get no edit.
    """
    sizes = names.shares(own)
    units = {up.shape[0] / sizes[i] for i, (up, _) in parts.items()}
    if (
        len(units) > 1
        or len({down.shape[1] for _, down in parts.values()}) > 1
        or not next(iter(units)).is_integer()
    ):
        raise LoraError(
            f"the parts of {own} have shapes that do not fit each other: "
            f"{', '.join(str((up.shape[0], down.shape[1])) for up, down in parts.values())}{AGAIN}"
        )
    unit = int(next(iter(units)))
    first = min(parts)
    shared = all(
        down.shape == parts[first][1].shape and torch.equal(down, parts[first][1])
        for _, down in parts.values()
    )
    like = max((up for up, _ in parts.values()), key=lambda t: t.element_size())
    rank = parts[first][1].shape[0] if shared else sum(down.shape[0] for _, down in parts.values())
    up, column = like.new_zeros(unit * sum(sizes), rank), 0
    for i in sorted(parts):
        rows, part_up = unit * sum(sizes[:i]), parts[i][0]
        up[rows : rows + len(part_up), column : column + part_up.shape[1]] = part_up.to(like.dtype)
        column += 0 if shared else part_up.shape[1]
    down = (
        parts[first][1]
        if shared
        else torch.cat([parts[i][1].to(parts[first][1].dtype) for i in sorted(parts)])
    )
    return (_swapped(up), down) if own == names.SWAPPED else (up, down)


def _swapped(up: Tensor) -> Tensor:
    return torch.cat(up.chunk(2)[::-1])


def _without_padding(
    modules: dict[str, tuple[Tensor, Tensor]], metadata: Mapping[str, str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Remove the empty ranks that :func:`write` added as padding."""
    try:
        ranks = json.loads(metadata.get(RANKS, "null"))
    except (ValueError, RecursionError):
        ranks = None
    if (
        not isinstance(ranks, list)
        or len(ranks) != len(modules)
        or not all(type(r) is int and r > 0 for r in ranks)
    ):
        return modules
    out = {}
    for module, rank in zip(sorted(modules), ranks):
        up, down = modules[module]
        empty = not up[:, rank:].any() and not down[rank:].any()
        out[module] = (up[:, :rank].contiguous(), down[:rank].contiguous()) if empty else (up, down)
    return out


# ------------------------------------------------------------------------------------------- writing


def write(lora, form: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of an :class:`~trace_core.lora.ErasureLora` in a form of :data:`FORMATS`.

    In diffusers' form, all layers are padded with zeros to the same rank. Versions of diffusers before 0.36
    use the scale of one layer for all, which is 1 only for equal ranks.

    Raises:
        LoraError: naming a layer without a name in the form, or if the file does not tell its model family.
    """
    if form not in FORMATS:
        raise LoraError(f"format '{form}' is unknown; use one of {', '.join(FORMATS)}")
    metadata = dict(lora.metadata)
    metadata.pop(RANKS, None)
    if form == "comfyui":
        return lora.state_dict(), metadata
    kind = family(lora)
    own = {m.removeprefix(PREFIX): pair for m, pair in lora.modules.items()}
    solid = next((name for name in own if CONVOLUTION.search(name)), None)
    if solid:
        raise LoraError(
            f"{solid} is a convolution, which this library writes only in ComfyUI's form; leave --format out"
        )
    if form == "kohya":
        return _kohya(own, kind), metadata | {
            "ss_network_dim": str(lora.rank),
            "ss_network_alpha": str(lora.rank),
        }
    ranks = [lora.modules[m][1].shape[0] for m in sorted(lora.modules)]
    if len(set(ranks)) > 1:
        metadata[RANKS] = json.dumps(ranks)
    return _diffusers(own, kind, lora.rank), metadata


def family(lora) -> str:
    """``sd1``, ``sd2``, ``sdxl`` or ``flux``, from the file's metadata or its layers.

    Raises:
        LoraError: if neither tells the family.
    """
    base = lora.info().get("trace.base")
    stated = str(base.get("kind")) if isinstance(base, dict) else ""
    if stated in ("sd1", "sd2", "sdxl", "flux", "flux-schnell"):
        return stated.removesuffix("-schnell")
    own = {m.removeprefix(PREFIX): down.shape[1] for m, (_, down) in lora.modules.items()}
    if any(names.flux_to_diffusers(name) for name in own):
        return "flux"
    widths = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
    found = next(
        (
            widths[w]
            for name, w in own.items()
            if name.endswith((".attn2.to_k", ".attn2.to_v")) and w in widths
        ),
        None,
    )
    if found is None:
        raise LoraError(
            "this file does not tell its model family, and its layers do not show it; only "
            "an erasure of TRACE, or one with cross-attention keys or values, can be written in another "
            "form: leave the form at comfyui"
        )
    return found


def _kohya(own: Mapping[str, tuple[Tensor, Tensor]], kind: str) -> dict[str, Tensor]:
    """Layers in sd-scripts' names: diffusers' names for SD 1 and 2, the network's names for SDXL and FLUX."""
    theirs = _unet_names(own) if kind in ("sd1", "sd2") else dict.fromkeys(own)
    out = {}
    for name, (up, down) in own.items():
        stem = f"lora_unet_{(theirs[name] or name).replace('.', '_')}"
        solid = _is_solid(name, kind)
        out[f"{stem}.lora_down.weight"] = down[:, :, None, None] if solid else down
        out[f"{stem}.lora_up.weight"] = up[:, :, None, None] if solid else up
        out[f"{stem}.alpha"] = torch.tensor(float(down.shape[0]))
    return out


def _diffusers(own: Mapping[str, tuple[Tensor, Tensor]], kind: str, rank: int) -> dict[str, Tensor]:
    out, theirs = {}, _unet_names(own) if kind != "flux" else {}
    for name, (up, down) in own.items():
        more = rank - down.shape[0]
        if more:
            up, down = (
                torch.cat([up, up.new_zeros(len(up), more)], 1),
                torch.cat([down, down.new_zeros(more, down.shape[1])]),
            )
        if kind == "flux":
            parts = names.flux_to_diffusers(name)
            if parts is None:
                raise LoraError(
                    f"{name} has no counterpart in diffusers' FLUX; write the file in the form comfyui"
                )
            sizes = names.shares(name)
            if len(up) % sum(sizes):
                raise LoraError(
                    f"{name} has {len(up)} rows, which do not divide into {' + '.join(map(str, sizes))} "
                    "parts; the file does not belong to a FLUX.1 network"
                )
            up = _swapped(up) if name == names.SWAPPED else up
            pieces = up.split([len(up) // sum(sizes) * s for s in sizes])
            layers = {f"transformer.{part}": (piece, down) for part, piece in zip(parts, pieces)}
        else:
            solid = _is_solid(name, kind)
            layers = {
                f"unet.{theirs[name]}": (up[:, :, None, None], down[:, :, None, None])
                if solid
                else (up, down)
            }
        for layer, (u, d) in layers.items():
            out[f"{layer}.lora_A.weight"], out[f"{layer}.lora_B.weight"] = d, u
    return out


def _is_solid(name: str, kind: str) -> bool:
    """Whether a layer is a 1 x 1 convolution: the ends of SD 1's spatial transformers; linear elsewhere."""
    return kind == "sd1" and name.endswith((".proj_in", ".1.proj_out"))


def _unet_names(own) -> dict[str, str]:
    count = names.blocks_per_level(own)
    theirs = {name: names.unet_to_diffusers(name, count) if count else None for name in own}
    missing = next((name for name, found in theirs.items() if found is None), None)
    if missing:
        raise LoraError(
            f"{missing} has no counterpart in diffusers' UNet; only files for SD networks can be written in "
            "this form"
        )
    return theirs
