"""The finetune: sampling trajectories, objectives on them, adapters, and the loop."""

from .options import FinetuneConfig
from .progress import Diverged, Progress
from .run import FinetuneResult, finetune

__all__ = ["Diverged", "FinetuneConfig", "FinetuneResult", "Progress", "finetune"]
