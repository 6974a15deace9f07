"""Train the codec's decoder and the judge.

``python -m trace_core.demo.recipe.train_vision codec|judge --world icons|people --minutes 10``
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec import Codec
from ..judge import Judge
from ..loader import load_vae
from .worlds import CACHE, WORLDS, World, latents, pictures


def fit(name: str, model: nn.Module, loss: Callable[[], Tensor], minutes: float, lr: float) -> nn.Module:
    """AdamW with a cosine over the time budget; returns the exponential moving average of the weights."""
    ema = copy.deepcopy(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    start, step, mean = time.time(), 0, 0.0
    while (share := (time.time() - start) / (60 * minutes)) < 1:
        optimiser.param_groups[0]["lr"] = (
            lr * min(1, (step + 1) / 50) * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
        )
        value = loss()
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(ema.parameters()), list(model.parameters()), 1 - min(0.998, step / (step + 10))
            )
        step, mean = step + 1, 0.98 * mean + 0.02 * value.item()
        if step % 50 == 0:
            print(f"{name} step {step} {100 * share:.0f} % loss {mean / (1 - 0.98**step):.4f}", flush=True)
    return ema


@torch.no_grad()
def start_from(codec: Codec, other: Codec) -> None:
    """Give a codec the decoder of another world's, whose first layer then reads this codec's latents.

    A latent z of the codec is ``z M + b`` of the other one, for the picture that both decode linearly.
    """
    codec.decoder.load_state_dict(other.decoder.state_dict())
    back = other.basis.T / other.std
    change = (codec.std[:, None] * codec.basis) @ back
    shift = (codec.mean - other.mean) @ back
    first = codec.decoder[0]
    first.bias += torch.einsum("oikl,i->o", first.weight, shift)
    first.weight.copy_(torch.einsum("oikl,ji->ojkl", first.weight, change))


def train_codec(world: World, minutes: float) -> None:
    codec = latents(world)[2]
    x, _ = pictures(world, 1, world.per_combination // 4, False)
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        batch = x[torch.randint(len(x), (32,), generator=generator)].float() / 127.5 - 1
        z = codec.encode(batch)
        z = z + 0.35 * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z)  # sampled latents are inexact too
        error = codec.decode(z) - batch
        return error.abs().mean() + 0.5 * error.square().mean()

    file = CACHE / f"{world.prefix}codec.pt"
    if file.exists():
        codec.load_state_dict(torch.load(file))
    elif world.prefix:
        start_from(codec, load_vae().first_stage_model)
    codec = fit("codec", codec, loss, minutes, 2e-3)
    torch.save(codec.state_dict(), file)
    test = pictures(world, 3, 1, False)[0][:512].float() / 127.5 - 1
    with torch.no_grad():
        z = codec.encode(test)
        print(
            f"test MSE {F.mse_loss(codec.decode(z), test):.4f} linear "
            f"{F.mse_loss(codec.decode_linear(z), test):.4f}"
        )


@torch.no_grad()
def accuracy(judge: Judge, codec: Codec, x: Tensor, y: dict[str, Tensor], coded: bool) -> dict[str, float]:
    right = dict.fromkeys(y, 0)
    for i in range(0, len(x), 256):
        batch = x[i : i + 256].float() / 127.5 - 1
        if coded:
            batch = codec.decode(codec.encode(batch)).clamp(-1, 1)
        for head, logits in judge(batch).items():
            right[head] += (logits.argmax(-1) == y[head][i : i + 256]).sum().item()
    return {h: n / len(x) for h, n in right.items()}


def train_judge(world: World, minutes: float) -> None:
    codec = Codec()
    codec.load_state_dict(torch.load(CACHE / f"{world.prefix}codec.pt"))
    codec.requires_grad_(False)
    x, y = pictures(world, 2, world.judged, True)
    judge = Judge(world.heads)
    rng = random.Random(0)

    def loss() -> Tensor:
        index = torch.randint(len(x), (64,))
        batch = x[index].float() / 127.5 - 1
        if rng.random() < 0.8:  # mostly like samples: decoded by the codec, with some latent noise
            with torch.no_grad():
                z = codec.encode(batch)
                batch = codec.decode(z + 0.4 * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z)).clamp(-1, 1)
        out = judge(batch)
        return sum(F.cross_entropy(out[h], y[h][index], label_smoothing=0.05) for h in y)

    judge = fit("judge", judge, loss, minutes, 2e-3)
    torch.save(judge.state_dict(), CACHE / f"{world.prefix}judge.pt")
    test = pictures(world, 3, 1, False)
    print("real renderings", accuracy(judge, codec, *test, coded=False))
    print("through the codec", accuracy(judge, codec, *test, coded=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["codec", "judge"])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--world", choices=WORLDS, default="icons")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    {"codec": train_codec, "judge": train_judge}[args.what](WORLDS[args.world], args.minutes)


if __name__ == "__main__":
    main()
