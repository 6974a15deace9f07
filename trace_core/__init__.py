"""TRACE: erase concepts from text-to-image models, on ComfyUI's own model objects.

::

    model, clip, vae = trace_core.load("sd15.safetensors")
    erasure = trace_core.Eraser(method="projection").fit(model, clip, "Van Gogh")
    erased = erasure.apply(model)
    erasure.save("van-gogh.safetensors")
"""

import importlib

__version__ = "0.1.0"

#: public name -> its module, imported at first use
_MODULES = {
    "Eraser": ".methods",
    "METHODS": ".methods",
    "Erasure": ".lora.result",
    "ErasureLora": ".lora",
    "Concept": ".text.concepts",
    "parse_concepts": ".text.grammar",
    "ClosedFormConfig": ".closed_form",
    "ClosedFormFitter": ".closed_form",
    "FinetuneConfig": ".finetune",
    "TraceError": ".errors",
}
#: only for use outside ComfyUI; the registry archive leaves these modules out
_OUTSIDE = {"engine": ".cli", "load": ".cli.models"}

__all__ = ["__version__", *_MODULES, *_OUTSIDE]


def __getattr__(name: str):
    module = {**_MODULES, **_OUTSIDE}.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "engine":
        return importlib.import_module(".cli.engine", __name__)
    return getattr(importlib.import_module(module, __name__), name)


def __dir__() -> list[str]:
    return __all__
