"""The finetune: sampling trajectories, objectives on them, adapters, and the loop."""

from .options import FinetuneConfig
from .run import finetune

__all__ = ["FinetuneConfig", "finetune"]
