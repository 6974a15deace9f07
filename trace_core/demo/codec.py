"""The demo autoencoder: a fixed linear encoder (PCA of 8 x 8 patches) and a small convolutional decoder."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from .sizes import LATENT_CHANNELS, PATCH


class ResBlock(nn.Module):
    """Pre-activation residual block of two 3 x 3 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Codec(nn.Module):
    """Pictures ``[b, 3, h, w]`` in -1..1 <-> latents ``[b, 16, h/8, w/8]`` of unit variance per channel."""

    def __init__(self):
        super().__init__()
        patch_values = 3 * PATCH * PATCH
        self.register_buffer("mean", torch.zeros(patch_values))
        self.register_buffer("basis", torch.zeros(LATENT_CHANNELS, patch_values))
        self.register_buffer("std", torch.ones(LATENT_CHANNELS))
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, 128, 3, padding=1),
            ResBlock(128),
            ResBlock(128),
            nn.Conv2d(128, 256, 1),
            nn.PixelShuffle(2),
            ResBlock(64),
            ResBlock(64),
            nn.Conv2d(64, 128, 1),
            nn.PixelShuffle(2),
            ResBlock(32),
            nn.GroupNorm(8, 32),
            nn.SiLU(),
            nn.Conv2d(32, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def fit_encoder(self, pictures: Tensor) -> None:
        """PCA of the patches of ``pictures`` ``[b, 3, h, w]``: mean, directions, standard deviations."""
        patches = self._patches(pictures).flatten(0, 2).double()
        self.mean.copy_(patches.mean(0))
        centred = patches - patches.mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(patches))
        self.basis.copy_(vectors.flip(1)[:, :LATENT_CHANNELS].T)
        self.std.copy_(values.flip(0)[:LATENT_CHANNELS].sqrt())

    @staticmethod
    def _patches(pictures: Tensor) -> Tensor:
        return rearrange(pictures, "b c (h p) (w q) -> b h w (c p q)", p=PATCH, q=PATCH)

    def encode(self, pictures: Tensor) -> Tensor:
        codes = (self._patches(pictures) - self.mean) @ self.basis.T / self.std
        return rearrange(codes, "b h w c -> b c h w")

    def decode_linear(self, latents: Tensor) -> Tensor:
        """Least-squares reconstruction without the decoder, as in a latent preview."""
        patches = (rearrange(latents, "b c h w -> b h w c") * self.std) @ self.basis + self.mean
        return rearrange(patches, "b h w (c p q) -> b c (h p) (w q)", c=3, p=PATCH, q=PATCH)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_linear(latents) + self.decoder(latents)
