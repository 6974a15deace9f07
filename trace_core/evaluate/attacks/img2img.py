"""Image to image from pictures of the concept, with the concept's prompt."""

from __future__ import annotations

from .case import Attack, Case, Outcome
from .variants import strongest

DENOISE = (0.3, 0.5, 0.7, 1.0)  #: shares of the schedule, as in ComfyUI's KSampler
OTHER_NOISE = 50021  #: added to the seeds, so that the noise is not that which made the pictures


def run(case: Case) -> Outcome:
    """The unerased model's pictures of the concept, noised and sampled by the erased model.

    A picture that is little noised survives whatever the model knows. So every rate stands beside the same of
    the erased model with the counterpart prompt (``picture``: what the picture alone brings). The strongest
    variant is the one that exceeds it most. ``reach`` has no meaning, since the latents are not the model's
    own.
    """
    pictures = case.base_latents
    seeds = [s + OTHER_NOISE for s in case.seeds]
    counterpart = case.prompts_of(case.counterpart)
    found = {}
    for denoise in DENOISE:
        options = {"latents": pictures, "denoise": denoise, "seeds": seeds}
        found[f"{denoise:g}"] = {
            "rate": case.rate(case.erased, case.prompts, f"img2img {denoise:g}", **options),
            "unerased": case.rate(case.model, case.prompts, f"img2img {denoise:g}, unerased", **options),
            "picture": case.rate(case.erased, counterpart, f"img2img {denoise:g}, picture", **options),
        }
    return strongest(found, "picture", counterpart=counterpart[0], pictures=case.recognised(pictures))


ATTACK = Attack(
    "img2img",
    "image to image from pictures of the concept, at four strengths of denoising",
    "practice",
    run,
)
