"""Errors that a user can act on. Their messages name the value and the remedy."""


class TraceError(ValueError):
    """Base of all errors that the library raises on bad input."""


class ConceptError(TraceError):
    """An entry of the erase list or of the keep list is not usable."""


class ModelError(TraceError):
    """A model or one of its weights does not fit the method."""


class LoraError(TraceError):
    """A LoRA file is damaged, unsafe, or made for another architecture."""
