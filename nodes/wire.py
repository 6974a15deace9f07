"""What goes over the wires: LORA_MODEL and LOSS_MAP in the stock training nodes' form, and the text
widgets.
"""

from __future__ import annotations

from ..trace_core.errors import LoraError
from ..trace_core.lora import ErasureLora
from ..trace_core.text.concepts import Concept
from ..trace_core.text.grammar import parse_concepts, parse_keep

LORA, LOSSES = "LORA_MODEL", "LOSS_MAP"

#: What people search for who want what the erasing nodes do.
ALIASES = (
    "unlearn",
    "unlearning",
    "forget",
    "remove concept",
    "erase concept",
    "concept erasure",
    "concept removal",
    "ablation",
)

ERASE = (
    "STRING",
    {
        "multiline": True,
        "default": "cat",
        "tooltip": "What the model must no longer draw, one concept a line. `cat` steers to the same prompt "
        "without it, "
        "`cat -> dog` to something else, `cat @ 0.5` takes half of it. `cat + red background` goes only "
        "together, "
        "`glasses from scientist` only there. # starts a comment; what stands in 'double quotes' is one "
        "name. "
        "Lists may be pasted: bullets, numbers and quotes of programs are left out, `;` separates.",
    },
)
KEEP = (
    "STRING",
    {
        "multiline": True,
        "default": "",
        "tooltip": "What must not change, one a line. Empty: a hundred everyday things (on a demo model all "
        "that it knows).",
    },
)


def with_advanced(names: tuple[str, ...], inputs: dict[str, dict]) -> dict[str, dict]:
    """Node inputs, those of ``names`` marked as rarely used: the page folds them away until they are asked
    for.
    """
    marked = lambda name, spec: (spec[0], {**spec[1], "advanced": True}) if name in names else spec  # noqa: E731
    return {
        group: {name: marked(name, spec) for name, spec in entries.items()}
        for group, entries in inputs.items()
    }


class LoraState(dict):
    """A LoRA's tensors by key, as the stock nodes expect them; our metadata ride along in an attribute."""

    def __init__(self, lora: ErasureLora):
        # Each tensor has its own memory, which the stock "Save LoRA Weights" asks for
        super().__init__({key: tensor.clone() for key, tensor in lora.state_dict().items()})
        self.metadata = dict(lora.metadata)

    def __repr__(self) -> str:
        """Short: ComfyUI writes the inputs of a node that fails into its answer."""
        return f"<{len(self) // 3} layers, {self.metadata.get('modelspec.title', 'no title')}>"


def erasure_of(state) -> ErasureLora:
    """The erasure that came over a LORA_MODEL wire, ours or another node's.

    Raises:
        LoraError: if it is no plain LoRA, naming the first key that is not.
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


def loss_map(history: list[dict], weights: dict[str, float]) -> dict:
    """``{"loss": totals, "terms": {name: values}}``; the stock graph reads the first entry alone."""
    terms = {
        name: [entry[name] for entry in history] for name in (history[0] if history else {}) if name != "step"
    }
    totals = [sum(weights.get(name, 1.0) * terms[name][i] for name in terms) for i in range(len(history))]
    if totals and min(totals) == max(totals):  # the stock graph divides by their difference
        totals.append(totals[-1] * (1 - 1e-6) - 1e-12)
    return {"loss": totals or [0.0, 1e-12], "terms": terms}
