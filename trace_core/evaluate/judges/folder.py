"""A CLIP from a local folder in the form of transformers: safetensors alone, and nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import TraceError
from .zero_shot import ZeroShot

WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "vocab.json")  #: one of them is needed
HINT = "a folder that transformers' CLIPModel and its processor were saved to has all it needs"
#: What OpenAI's CLIPs were trained with, for folders without preprocessor_config.json
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class FolderClip(ZeroShot):
    """transformers' CLIPModel with its tokenizer.

    Args:
        folder: has ``config.json``, ``model.safetensors`` and ``tokenizer.json``, or ``vocab.json`` with
            ``merges.txt``.
        device: where the CLIP runs; None: on the accelerator, if there is one.

    Raises:
        TraceError: naming the folder, what it lacks, and the remedy.
    """

    def __init__(self, folder: str | Path, device: str | None = None):
        self.folder = Path(folder)
        weights = check_folder(self.folder)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.tokenizer = _load(self.folder, self.device)
        self.name = f"CLIP '{self.folder.resolve().name}'"
        self.fingerprint = _fingerprint(weights)
        self.scale = self.model.logit_scale.exp().item()
        self.length = self.model.config.text_config.max_position_embeddings
        self._prepare = Preparation.of(self.folder, self.model.config.vision_config.image_size)

    @torch.no_grad()
    def image_rows(self, pictures: Tensor) -> Tensor:
        pixels = torch.stack([self._prepare(picture) for picture in pictures]).to(self.device)
        return _pooled(self.model.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    def text_rows(self, texts: Sequence[str]) -> Tensor:
        words = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.device)
        found = self.model.get_text_features(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"]
        )
        return _pooled(found)


def check_folder(folder: Path) -> list[Path]:
    """The files with a CLIP's weights.

    Raises:
        TraceError: if the folder lacks a file, or is of another model.
    """
    if not folder.is_dir():
        raise TraceError(
            f"judge '{folder}' is no folder; give `nudenet`, or the folder of a CLIP on this computer: {HINT}"
        )
    if not (folder / "config.json").is_file():
        raise TraceError(f"'{folder}' has no config.json, so it is no CLIP; {HINT}")
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (ValueError, AttributeError, OSError) as error:
        raise TraceError(f"'{folder}/config.json' cannot be read ({error}); {HINT}") from error
    if kind != "clip":
        raise TraceError(f"'{folder}' has a model of the type '{kind}', not a whole clip; {HINT}")
    weights = sorted(folder.glob("model*.safetensors"))
    if not ((folder / WEIGHTS).is_file() or (folder / SHARDS).is_file() and weights):
        pickled = any(folder.glob("*.bin"))
        old = " Files such as pytorch_model.bin can run code and are not read." if pickled else ""
        raise TraceError(
            f"'{folder}' has no {WEIGHTS}; save the CLIP with save_pretrained, which writes it.{old}"
        )
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise TraceError(f"'{folder}' has no tokenizer ({' or '.join(TOKENIZERS)}); {HINT}")
    return weights


def _load(folder: Path, device: str):
    """The model and its tokenizer. Nothing but files of the folder is read, and no code among them."""
    from transformers import AutoTokenizer, CLIPModel

    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    except Exception as error:  # transformers raises errors of many types about damaged files
        first = str(error).split("\n")[0][:200] or type(error).__name__
        raise TraceError(f"transformers cannot load the CLIP in '{folder}': {first}") from error
    return model.float().eval().requires_grad_(False).to(device), tokenizer


def _pooled(found) -> Tensor:
    """The projected rows, which transformers 5 wraps."""
    return found if isinstance(found, Tensor) else found.pooler_output


def _fingerprint(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while part := stream.read(1 << 24):
                digest.update(part)
    return digest.hexdigest()[:16]


class Preparation:
    """A picture as a CLIP reads it: shorter side to ``size`` (bicubic), middle cut out, normalised.

    It is the arithmetic of transformers' CLIPImageProcessor, without torchvision.
    """

    def __init__(self, size: int, crop: int, mean: Sequence[float], std: Sequence[float]):
        self.size, self.crop = size, crop
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (mean, std))

    @classmethod
    def of(cls, folder: Path, size: int) -> Preparation:
        """As the folder says, in whichever version of transformers it was saved; else OpenAI's numbers."""
        said = _said(folder / "preprocessor_config.json")
        said = said or _said(folder / "processor_config.json").get("image_processor") or {}
        edge, crop = (_edge(said.get(name), size) for name in ("size", "crop_size"))
        return cls(edge, crop, said.get("image_mean") or MEAN, said.get("image_std") or STD)

    def __call__(self, picture: Tensor) -> Tensor:
        """``[3, crop, crop]`` float32 of a picture ``[h, w, 3]`` in 0..1."""
        array = (picture.clamp(0, 1) * 255).round().byte().cpu().numpy()
        image = Image.fromarray(array)
        short = min(image.size)
        size = tuple(max(self.crop, int(side * self.size / short)) for side in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC) if size != image.size else image
        left, top = ((side - self.crop) // 2 for side in image.size)
        image = image.crop((left, top, left + self.crop, top + self.crop))
        x = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
        return (x - self.mean) / self.std


def _said(file: Path) -> dict:
    """The object of a JSON file; empty without the file."""
    try:
        found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except (ValueError, OSError) as error:
        raise TraceError(f"'{file}' cannot be read ({error}); {HINT}") from error
    return found if isinstance(found, dict) else {}


def _edge(said, size: int) -> int:
    """Pixels of a side, however the file writes it: a number, or an object with names."""
    if isinstance(said, dict):
        said = said.get("shortest_edge") or said.get("height")
    return int(said or size)
