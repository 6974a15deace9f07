"""The finetune: trajectories, objectives, adapters, and the training loop."""

from .options import FinetuneConfig
from .progress import Diverged, Progress
from .run import FinetuneResult, finetune

__all__ = ["Diverged", "FinetuneConfig", "FinetuneResult", "Progress", "finetune"]
