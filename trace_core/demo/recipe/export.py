"""Write the trained weights to the assets in float16: ``python -m trace_core.demo.recipe.export``."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from ..loader import MODELS
from ..networks import ASSETS

CACHE = Path(".cache")


def clip_keys(name: str) -> str:
    """Restore the ``text_model.`` level of ComfyUI's names, which transformers 5 dropped."""
    head, rest = name.split(".", 1)
    if head == "clip_l" and not rest.startswith("text_model."):
        return f"clip_l.text_model.{rest}"
    return name


def main() -> None:
    for name in MODELS:
        if (CACHE / f"{name}.pt").exists():
            saved = torch.load(CACHE / f"{name}.pt", weights_only=False)
            state = {clip_keys(k): v for k, v in saved["ema"].items()}
            skipped = ("embed_tokens", "position_ids", "told.")  # doubles, and what only the training needs
            state = {k: v for k, v in state.items() if not any(s in k for s in skipped)}
            metadata = {"step": str(saved["step"]), "format": "pt"}
            save_file(
                {k: v.half().contiguous() for k, v in state.items()}, ASSETS / f"{name}.safetensors", metadata
            )
    for name in ("codec", "judge", "people-codec", "people-judge"):
        if (CACHE / f"{name}.pt").exists():
            state = torch.load(CACHE / f"{name}.pt")
            save_file({k: v.half().contiguous() for k, v in state.items()}, ASSETS / f"{name}.safetensors")
    for file in sorted(ASSETS.glob("*.safetensors")):
        print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
