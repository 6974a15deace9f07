"""The demo models' CLIP objects: ComfyUI's own classes with small configurations and vocabularies."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from ..backbones import compat
from . import sizes
from .networks import ASSETS, clip_config, config_file

CLIP_TOKENIZER, T5_TOKENIZER = ASSETS / "clip_tokenizer", ASSETS / "t5_tokenizer"
PEOPLE_TOKENIZER = ASSETS / "people_tokenizer"


def _vocabulary(folder) -> int:
    return len(PreTrainedTokenizerFast.from_pretrained(folder))


def _clip_tokenizer(embedding_size: int, folder: Path = CLIP_TOKENIZER, length: int = sizes.TEXT_LENGTH):
    """A class with the constructor of ComfyUI's tokenizers."""
    import comfy.sd1_clip

    class DemoClipTokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, **_):
            super().__init__(
                str(folder),
                max_length=length,
                embedding_directory=embedding_directory,
                embedding_size=embedding_size,
                tokenizer_class=PreTrainedTokenizerFast,
            )

    return DemoClipTokenizer


def _t5_tokenizer():
    import comfy.sd1_clip

    class DemoT5Tokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, **_):
            super().__init__(
                str(T5_TOKENIZER),
                embedding_directory=embedding_directory,
                pad_with_end=False,
                embedding_size=sizes.T5["d_model"],
                embedding_key="t5xxl",
                tokenizer_class=PreTrainedTokenizerFast,
                has_start_token=False,
                pad_to_max_length=False,
                max_length=99999999,
                min_length=sizes.TEXT_LENGTH,
            )

    return DemoT5Tokenizer


def _clip_model(tower: dict, folder: Path = CLIP_TOKENIZER):
    """ComfyUI's SDClipModel around a small CLIPTextModel. ComfyUI has no option for the vocabulary size."""
    import comfy.clip_model
    import comfy.sd1_clip

    vocab = _vocabulary(folder)
    length = clip_config(tower, vocab)["max_position_embeddings"]

    class SmallClipText(comfy.clip_model.CLIPTextModel):
        def __init__(self, config_dict, dtype, device, operations):
            super().__init__(config_dict, dtype, device, operations)
            width = config_dict["hidden_size"]
            embedding = operations.Embedding(vocab, width, dtype=dtype, device=device)
            self.text_model.embeddings.token_embedding = embedding

    class DemoClipModel(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None, return_projected_pooled=True, **_):
            with config_file(clip_config(tower, vocab)) as config:
                super().__init__(
                    device=device,
                    max_length=length,
                    dtype=dtype,
                    model_class=SmallClipText,
                    textmodel_json_config=config,
                    return_projected_pooled=return_projected_pooled,
                    special_tokens={"start": vocab - 2, "end": vocab - 1, "pad": vocab - 1},
                    model_options=dict(model_options or {}),
                )

    return DemoClipModel


def sd_clip(tower: dict = sizes.CLIP_SD, folder: Path = CLIP_TOKENIZER):
    """CLIP object of demo-sd and demo-people, like Stable Diffusion 1.x.

    One causal tower, end tokens as pads, layer norm.
    """
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base

    length = tower.get("max_position_embeddings", sizes.TEXT_LENGTH)
    model_class = _clip_model(tower, folder)
    tokenizer_class = _clip_tokenizer(tower["hidden_size"], folder, length)

    class DemoSDClip(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device, dtype=dtype, clip_model=model_class, model_options=model_options or {}
            )

    class DemoSDTokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, **_):
            super().__init__(embedding_directory=embedding_directory, tokenizer=tokenizer_class)

    target = comfy.supported_models_base.ClipTarget(DemoSDTokenizer, DemoSDClip)
    return comfy.sd.CLIP(target, model_options={"dtype": torch.float32}, **compat.clip_options(comfy))


def people_clip():
    """CLIP object of demo-people: as demo-sd's, for longer prompts."""
    return sd_clip(sizes.CLIP_PEOPLE, PEOPLE_TOKENIZER)


def flux_clip():
    """CLIP object of demo-flux, like FLUX.1: T5 rows with unmasked pads, CLIP's unprojected pooled vector."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base
    import comfy.text_encoders.flux
    import comfy.text_encoders.t5

    clip_class, tokenizer_class = (
        _clip_model(sizes.CLIP_FLUX),
        _clip_tokenizer(sizes.CLIP_FLUX["hidden_size"]),
    )
    t5_config = {**sizes.T5, "vocab_size": _vocabulary(T5_TOKENIZER)}

    class DemoFluxClip(comfy.text_encoders.flux.FluxClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            torch.nn.Module.__init__(self)
            options = dict(model_options or {})
            self.clip_l = clip_class(
                device=device, dtype=dtype, return_projected_pooled=False, model_options=options
            )
            with config_file(t5_config) as config:
                self.t5xxl = comfy.sd1_clip.SDClipModel(
                    device=device,
                    dtype=dtype,
                    textmodel_json_config=config,
                    model_options=options,
                    special_tokens={"end": 1, "pad": 0},
                    model_class=comfy.text_encoders.t5.T5,
                )
            self.dtypes = {dtype}

    class DemoFluxTokenizer(comfy.text_encoders.flux.FluxTokenizer):
        def __init__(self, embedding_directory=None, **_):
            self.clip_l = tokenizer_class(embedding_directory=embedding_directory)
            self.t5xxl = _t5_tokenizer()(embedding_directory=embedding_directory)

    target = comfy.supported_models_base.ClipTarget(DemoFluxTokenizer, DemoFluxClip)
    return comfy.sd.CLIP(target, model_options={"dtype": torch.float32}, **compat.clip_options(comfy))
