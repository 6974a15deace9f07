"""LORA_MODEL and LOSS_MAP in the form of the stock training nodes, and the text widgets as concepts."""

from __future__ import annotations

from ..trace_core.errors import LoraError, enough_memory
from ..trace_core.lora import ErasureLora
from ..trace_core.text.concepts import Concept
from ..trace_core.text.grammar import parse_concepts, parse_keep

LORA, LOSSES = "LORA_MODEL", "LOSS_MAP"
CLOSE = "close other programs, and run the workflow again"


class LoraState(dict):
    """A LoRA's tensors by key, as the stock nodes expect them. Our metadata are in an attribute."""

    @enough_memory("the LoRA", CLOSE)
    def __init__(self, lora: ErasureLora):
        # Each tensor has its own memory, which the stock "Save LoRA Weights" asks for
        super().__init__({key: tensor.clone() for key, tensor in lora.state_dict().items()})
        self.metadata = dict(lora.metadata)

    def __repr__(self) -> str:
        """A short text, since ComfyUI writes the inputs of a node that fails into its answer."""
        return f"<{len(self) // 3} layers, {self.metadata.get('modelspec.title', 'no title')}>"


@enough_memory("the LoRA", CLOSE)
def erasure_of(state) -> ErasureLora:
    """The erasure on a LORA_MODEL wire, from our nodes or others.

    Raises:
        LoraError: if the state is no plain LoRA, naming the first key that is none.
    """
    if not isinstance(state, dict) or not state:
        raise LoraError(
            "the LORA_MODEL that is connected is empty; connect the LoRA output of a node that made one"
        )
    return ErasureLora.from_state_dict(state, getattr(state, "metadata", None))


def concepts_of(erase: str, keep: str) -> tuple[list[Concept], list[str]]:
    """Both text widgets, parsed.

    Raises:
        ConceptError: naming the widget and the line.
    """
    return parse_concepts(erase, "erase"), parse_keep(keep, "keep")


def prompts_of(text: str) -> list[str]:
    """The lines of a text widget that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def loss_map(history: list[dict], weights: dict[str, float]) -> dict:
    """``{"loss": totals, "terms": {name: values}}``; the stock graph reads the first entry alone."""
    terms = {
        name: [entry[name] for entry in history] for name in (history[0] if history else {}) if name != "step"
    }
    totals = [sum(weights.get(name, 1.0) * terms[name][i] for name in terms) for i in range(len(history))]
    if totals and min(totals) == max(totals):  # the stock graph divides by their difference
        totals.append(totals[-1] * (1 - 1e-6) - 1e-12)
    return {"loss": totals or [0.0, 1e-12], "terms": terms}
