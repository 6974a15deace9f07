"""Errors that a user can act on. Their messages name the value and the remedy."""


class TraceError(ValueError):
    """Base of all errors the library raises on bad input."""


class ConceptError(TraceError):
    """A line of the erase or keep list cannot be used."""


class ModelError(TraceError):
    """A model, or a weight of it, that this method cannot work on."""


class LoraError(TraceError):
    """A LoRA file that is damaged, hostile, or made for another architecture."""
