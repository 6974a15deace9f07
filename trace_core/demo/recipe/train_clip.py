"""Train the small CLIP of the tests, in the folder form of transformers.

``python -m trace_core.demo.recipe.train_clip --minutes 8 --out tests/data/clip``

It learns from the pictures of the judge's recipe: emoji on coloured backgrounds, most of them decoded by the
demo models' codec with noise in their latents, as samples are. No picture of a demo model is among them. The
tokenizer is that of demo-sd.
"""

from __future__ import annotations

import argparse
import copy
import random
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from ..loader import load_vae
from ..text_towers import CLIP_TOKENIZER
from ..vocabulary import COLOURS, OBJECTS, OPENINGS, STYLES
from .train_vision import fit
from .worlds import WORLDS, pictures

LENGTH = 16  #: tokens of a caption at most
TEXT = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
VISION = dict(hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4)
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
#: head -> its names, how a caption names one of them, and how often a batch holds each name
ROUNDS = {"object": (list(OBJECTS), 2), "style": (list(STYLES), 2), "colour": (list(COLOURS), 1)}


def config(vocabulary: int) -> CLIPConfig:
    """A CLIP of 0.45 million weights that reads 64 x 64 pictures."""
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    text = {**TEXT, "vocab_size": vocabulary, "max_position_embeddings": LENGTH, **ends}
    return CLIPConfig(
        text_config={**text, "projection_dim": 64},
        vision_config={**VISION, "image_size": 64, "patch_size": 16, "projection_dim": 64},
        projection_dim=64,
    )


def caption(head: str, name: str, label: dict[str, str], rng: random.Random) -> str:
    """A caption that names ``name``, and by chance something else of the picture."""
    if head == "object":
        synonyms = OBJECTS[name]["synonyms"]
        text = rng.choice(OPENINGS).format(rng.choice(synonyms) if synonyms and rng.random() < 0.4 else name)
        return text + (f", {label['style']}" if rng.random() < 0.3 else "")
    thing = f"a {label['object']}" if rng.random() < 0.5 else "something"
    if head == "style":
        return f"{rng.choice(['a photo of ' + thing, 'a picture', 'a photo'])}, {name}"
    return f"{rng.choice([thing, 'a photo', 'a photo of ' + thing])}, {name} background"


def train(minutes: float) -> CLIPModel:
    """Contrastive learning, in rounds in which every picture has another object, style or background."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(CLIP_TOKENIZER)
    codec, world = load_vae().first_stage_model, WORLDS["icons"]
    x, y = pictures(world, 2, world.judged, True)
    decoded = _decoded(codec, x)
    model, rng = CLIPModel(config(len(tokenizer))), random.Random(0)
    places = {
        head: [(y[head] == i).nonzero().flatten().tolist() for i in range(len(names))]
        for head, (names, _) in ROUNDS.items()
    }

    def loss() -> Tensor:
        total, start = 0.0, 0
        index, texts, sizes = [], [], []
        for head, (names, times) in ROUNDS.items():
            for _ in range(times):
                for i, name in enumerate(names):
                    at = rng.choice(places[head][i])
                    label = {h: ROUNDS[h][0][y[h][at]] for h in ROUNDS}
                    index.append(at)
                    texts.append(caption(head, name, label, rng))
                sizes.append(len(names))
        source = x if rng.random() < 0.2 else decoded
        batch = source[index].float() / 255 + 0.02 * torch.randn(len(index), 3, 64, 64)
        images, rows = features(model, tokenizer, batch, texts)
        for size in sizes:
            part = slice(start, start + size)
            scores = model.logit_scale.exp() * rows[part] @ images[part].T
            wanted = torch.arange(size)
            total = total + F.cross_entropy(scores, wanted) + F.cross_entropy(scores.T, wanted)
            start += size
        return total / (2 * len(sizes))

    return fit("clip", model, loss, minutes, 2e-3)


@torch.no_grad()
def _decoded(codec, x: Tensor) -> Tensor:
    """The pictures ``[n, 3, 64, 64]`` uint8 as the codec gives them, with noise in their latents."""
    torch.manual_seed(0)
    out = []
    for part in x.split(256):
        z = codec.encode(part.float() / 127.5 - 1)
        z = z + 0.4 * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z)
        out.append(((codec.decode(z).clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.cat(out)


def features(model: CLIPModel, tokenizer, batch: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Rows of length 1 of pictures ``[n, 3, 64, 64]`` in 0..1 and of texts."""
    x = (batch - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    words = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    out = model(pixel_values=x, input_ids=words["input_ids"], attention_mask=words["attention_mask"])
    return F.normalize(out.image_embeds, dim=-1), F.normalize(out.text_embeds, dim=-1)


def save(model: CLIPModel, folder: Path) -> None:
    """Write the folder: config, weights in float16, tokenizer, and how pictures are prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).half()
    half.config.save_pretrained(folder)
    state = {k: v.contiguous() for k, v in half.state_dict().items() if "position_ids" not in k}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CLIP_TOKENIZER / name, folder / name)
    (folder / "preprocessor_config.json").write_text(PREPARATION)


PREPARATION = """{
 "crop_size": {"height": 64, "width": 64},
 "do_center_crop": true,
 "do_normalize": true,
 "do_resize": true,
 "image_mean": [0.48145466, 0.4578275, 0.40821073],
 "image_processor_type": "CLIPImageProcessor",
 "image_std": [0.26862954, 0.26130258, 0.27577711],
 "resample": 3,
 "size": {"shortest_edge": 64}
}
"""


@torch.no_grad()
def report(model: CLIPModel) -> None:
    """Zero-shot accuracy on renderings that were not trained on."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(CLIP_TOKENIZER)
    x, y = pictures(WORLDS["icons"], 3, 1, False)
    asked = {"object": "a photo of the {}", "style": "a photo, {}", "colour": "a photo, {} background"}
    for head, (names, _) in ROUNDS.items():
        images, rows = features(model, tokenizer, x.float() / 255, [asked[head].format(n) for n in names])
        right = ((images @ rows.T).argmax(-1) == y[head]).float().mean()
        print(f"{head}: {100 * right:.1f} % zero-shot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, default=Path("tests/data/clip"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = train(args.minutes)
    report(model)
    save(model, args.out)


if __name__ == "__main__":
    main()
