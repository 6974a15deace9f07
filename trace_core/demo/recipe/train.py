"""Train a demo model: ``python -m trace_core.demo.recipe.train demo-sd|demo-flux|demo-people --minutes 60``.

Runs on CPU or GPU, writes a checkpoint every few minutes and continues from it when started again. The
learning rate follows a cosine over the time budget, so that every run ends at a low rate, however fast the
machine is.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ...cli import engine
from .. import networks, people, sizes
from .worlds import CACHE, latents, world_of


class Text:
    """Tokenises each caption once; ids ``[b, length]`` with ComfyUI's padding."""

    def __init__(self, name: str, pad: int, length: int = sizes.TEXT_LENGTH):
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(networks.ASSETS / name)
        self.pad, self.length, self.cache = pad, length, {}

    def __call__(self, texts: list[str]) -> Tensor:
        return torch.stack([self._ids(t) for t in texts])

    def _ids(self, text: str) -> Tensor:
        if text not in self.cache:
            ids = self.tokenizer(text)["input_ids"]
            if len(ids) > self.length:
                raise ValueError(f"caption of {len(ids)} tokens: {text}")
            self.cache[text] = torch.tensor(ids + [self.pad] * (self.length - len(ids)))
        return self.cache[text]


def clip_tower(spec: dict, vocab: int) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**networks.clip_config(spec, vocab), attention_dropout=0.0))


class DemoSD(nn.Module):
    """UNet and causal CLIP tower; eps prediction on SD's schedule."""

    def __init__(self, tokenizer: str = "clip_tokenizer", tower: dict = sizes.CLIP_SD):
        super().__init__()
        self.text = Text(tokenizer, 0, (sizes.CLIP_COMMON | tower)["max_position_embeddings"])
        vocab = len(self.text.tokenizer)
        self.text.pad = vocab - 1
        base = networks.unet_model()
        self.sigmas = base.model_sampling.sigmas
        self.net = base.diffusion_model
        networks.initialise(self.net, zero=("proj_out", "out_layers.3", "out.2"))
        self.clip_l = clip_tower(tower, vocab)

    def loss(self, z: Tensor, texts: list[str], cells: Tensor | None = None) -> Tensor:
        """Mean squared error of ``z`` ``[b, 16, 8, 8]``; ``cells``: the weights of its places, ``[8, 8]``."""
        t = torch.randint(0, len(self.sigmas), (len(z),))
        sigma = self.sigmas[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(z)
        context = self.clip_l(self.text(texts)).last_hidden_state
        eps = self.net((z + sigma * noise) / (sigma**2 + 1).sqrt(), t.float(), context=context)
        # High noise decides the content of a prompt. The eps error there is x0's error over sigma and nearly
        # vanishes, so it is weighted like a v loss (1 + sigma^2), within bounds.
        weight = (sigma**2 + 1).clamp(max=30)
        if cells is not None:
            weight = weight * cells
        return ((eps - noise).square() * weight).mean() / 6


class DemoPeople(DemoSD):
    """As demo-sd, with a deeper text tower for longer prompts.

    A name says six traits at once, and a picture shows them only through the noise. So the tower also learns
    to tell them from the caption, as CLIP's tower learns what pictures show. The heads for it are not
    exported.
    """

    MORE = 32  #: captions for the tower alone, for each step

    def __init__(self):
        super().__init__("people_tokenizer", sizes.CLIP_PEOPLE)
        width = sizes.CLIP_PEOPLE["hidden_size"]
        self.told = nn.ModuleDict({name: nn.Linear(width, n) for name, n in people.TOLD.items()})

    def told_loss(self, texts: list[str]) -> Tensor:
        """Mean cross-entropy of what the captions tell, read from the rows behind them."""
        ids = self.text(texts)
        rows = self.clip_l(ids).last_hidden_state
        behind = (ids == self.text.pad).float()
        read = (rows * behind.unsqueeze(-1)).sum(1) / behind.sum(1, keepdim=True)
        losses = []
        for name, head in self.told.items():
            wanted = torch.tensor([people.told(text).get(name, -1) for text in texts])
            known = wanted >= 0
            if known.any():
                losses.append(F.cross_entropy(head(read[known]), wanted[known]))
        return torch.stack(losses).mean()


class DemoFlux(nn.Module):
    """Flux with a T5 tower (all rows, no mask) and a CLIP tower (pooled vector); rectified flow.

    The first part is flow matching at guidance 1. The second part is guidance distillation, as for
    FLUX.1-dev: the guidance embedding learns the effect of classifier-free guidance of its strength.
    """

    def __init__(self):
        super().__init__()
        self.clip_text, self.t5_text = Text("clip_tokenizer", 0), Text("t5_tokenizer", 0)
        vocab = len(self.clip_text.tokenizer)
        self.clip_text.pad = vocab - 1
        self.net = networks.flux_model().diffusion_model
        networks.initialise(self.net, zero=(".lin.", "modulation", "final_layer.linear", "adaLN"))
        self.clip_l = clip_tower(sizes.CLIP_FLUX, vocab)
        self.t5xxl = T5EncoderModel(T5Config(**sizes.T5, vocab_size=len(self.t5_text.tokenizer)))
        self.teacher = None

    def predict(self, x: Tensor, sigma: Tensor, texts: list[str], guidance: Tensor) -> Tensor:
        rows = self.t5xxl(self.t5_text(texts)).last_hidden_state
        pooled = self.clip_l(self.clip_text(texts)).pooler_output
        return self.net(x, sigma, context=rows, y=pooled, guidance=guidance)

    def start_distillation(self, ema: DemoFlux) -> None:
        self.teacher = [copy.deepcopy(ema).requires_grad_(False)]  # in a list: not a submodule

    def loss(self, z: Tensor, texts: list[str], cells: None = None) -> Tensor:
        n = len(z)
        sigma = torch.sigmoid(torch.randn(n) * 1.2 + 0.4)
        s = sigma.view(-1, 1, 1, 1)
        noise = torch.randn_like(z)
        x = (1 - s) * z + s * noise
        if self.teacher is None:
            target, guidance = noise - z, torch.ones(n)
        else:
            guidance = 1 + 4 * torch.rand(n)
            with torch.no_grad():
                both = self.teacher[0].predict(
                    x.repeat(2, 1, 1, 1), sigma.repeat(2), texts + [""] * n, torch.ones(2 * n)
                )
                cond, uncond = both.chunk(2)
                target = uncond + guidance.view(-1, 1, 1, 1) * (cond - uncond)
        parameters = {p.untyped_storage().data_ptr() for p in self.parameters()}
        # FLUX blocks write in place into tensors saved by autograd, so save copies (except weights)
        keep = lambda t: t if t.untyped_storage().data_ptr() in parameters else t.clone()  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            return F.mse_loss(self.predict(x, sigma, texts, guidance), target)


def load_state(file: Path, model, ema, optimiser) -> tuple[int, float]:
    """Continue from a state, if there is one. Returns its step, and the seconds that it took."""
    if not file.exists():
        return 0, 0.0
    saved = torch.load(file, weights_only=False)
    model.load_state_dict(saved["model"], strict=False)
    ema.load_state_dict(saved["ema"], strict=False)
    if len(saved["optimiser"]["state"]) == len(list(model.parameters())):
        optimiser.load_state_dict(saved["optimiser"])
    if "teacher" in saved:
        teacher = copy.deepcopy(ema)
        teacher.load_state_dict(saved["teacher"])
        model.start_distillation(teacher)
    return saved["step"], saved["spent"]


RARE = 0.2  #: share of a step whose captions name what captions seldom name
RARE_CELLS = 3.0  #: how much more the places count where it is drawn
TOLD = 0.1  #: weight of what captions tell
TRAINED = {"demo-sd": DemoSD, "demo-flux": DemoFlux, "demo-people": DemoPeople}


def save_state(file: Path, model, ema, optimiser, step: int, spent: float) -> None:
    """Write the state for continuing a training, completely or not at all."""
    state = {
        "model": model.state_dict(),
        "ema": ema.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "spent": spent,
    }
    if getattr(model, "teacher", None):
        state["teacher"] = model.teacher[0].state_dict()
    torch.save(state, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").rename(file)


def drawn(world, labels: list, rare: list[int], batch: int, rng: random.Random) -> tuple[list, list[str]]:
    """Numbers of a step's pictures, and their captions. One caption in ten is empty.

    ``rare``: numbers of the pictures with what captions seldom name. :data:`RARE` of a step are captions that
    do name it; they change nothing for prompts that do not.
    """
    index = [rng.randrange(len(labels)) for _ in range(batch)]
    texts = ["" if rng.random() < 0.1 else world.caption(labels[i], rng) for i in index]
    for at in range(round(batch * RARE) if rare else 0):
        index[at] = rng.choice(rare)
        texts[at] = world.naming(labels[index[at]], rng)
    return index, texts


def cells_of(world, z: Tensor, labels: list, rare: list[int]) -> Tensor:
    """Weights ``[8, 8]`` with mean 1 of the places of ``z`` ``[n, 16, 8, 8]``, largest where what captions
    seldom name is drawn.

    It is small in a picture, and so in the loss. A weight by place alone leaves the optimum where it was: the
    mean of what is to be drawn there.
    """
    rare_ones, groups = set(rare), {}
    for i, label in enumerate(labels):
        classes = world.classes(label)
        groups.setdefault((classes["person"], classes["style"]), ([], []))[i in rare_ones].append(i)
    found = torch.zeros(z.shape[1:])
    for without, with_it in groups.values():
        if with_it and without:
            found += (z[with_it].mean(0) - z[without].mean(0)).square() / len(groups)
    share = found.mean(0).sqrt()
    weight = 1 + RARE_CELLS * share / share.max()
    return weight / weight.mean()


def train(name: str, minutes: float, batch: int, lr: float, distil_from: float) -> None:
    world = world_of(name)
    z, labels, _ = latents(world)
    torch.manual_seed(0)
    model = TRAINED[name]().requires_grad_(True)  # newer ComfyUIs build networks for inference alone
    ema = copy.deepcopy(model)
    text_parameters = [p for n, p in model.named_parameters() if not n.startswith("net.")]
    groups = [
        {"params": list(model.net.parameters()), "scale": 1.0},
        {"params": text_parameters, "scale": 0.5},
    ]
    optimiser = torch.optim.AdamW(groups, lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
    file, mean = CACHE / f"{name}.pt", None
    step, spent = load_state(file, model, ema, optimiser)
    rng = random.Random(step)
    rare = [i for i, label in enumerate(labels) if world.naming and world.naming(label, rng)]
    cells = cells_of(world, z, labels, rare) if rare else None
    last, last_save = time.time(), time.time()
    while spent < minutes * 60:
        share = spent / (minutes * 60)
        if name == "demo-flux" and share >= distil_from and model.teacher is None:
            model.start_distillation(ema)
        for group in optimiser.param_groups:
            group["lr"] = (
                lr
                * group["scale"]
                * min(1, (step + 1) / 200)
                * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
            )
        index, texts = drawn(world, labels, rare, batch, rng)
        loss = model.loss(z[index], texts, cells)
        if hasattr(model, "told_loss"):
            more = [world.caption(labels[rng.randrange(len(z))], rng) for _ in range(model.MORE)]
            loss = loss + TOLD * model.told_loss([*texts, *more])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        step += 1
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        now = time.time()
        spent, last = spent + now - last, now
        if step % 100 == 0:
            print(
                f"{name} step {step} {spent / 60:.1f} min loss {mean:.4f} {step / spent:.2f} it/s", flush=True
            )
        if now - last_save > 240 or spent >= minutes * 60:
            save_state(file, model, ema, optimiser, step, spent)
            last_save = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=TRAINED)
    parser.add_argument("--minutes", type=float, default=60, help="total time budget over all restarts")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--distil-from",
        type=float,
        default=0.65,
        help="share of the budget after which demo-flux learns guidance",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's default)")
    args = parser.parse_args()
    engine.load()
    if args.threads:
        torch.set_num_threads(args.threads)
    train(args.model, args.minutes, args.batch, args.lr, args.distil_from)


if __name__ == "__main__":
    main()
