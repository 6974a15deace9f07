"""The ComfyUI nodes, one a file. People's workflows hold the ids and widgets: never rename, only append."""

from . import live
from .apply import ApplyErasureLora
from .compare import CompareErasure
from .demo_model import LoadDemoModel
from .finetune import LateStageFinetune
from .fuse import FuseErasureLoras
from .presets import ErasurePresets
from .projection import ClosedFormProjection
from .save import SaveErasureLora
from .verify import VerifyErasure

NODES = (
    ClosedFormProjection,
    LateStageFinetune,
    FuseErasureLoras,
    ApplyErasureLora,
    SaveErasureLora,
    CompareErasure,
    VerifyErasure,
    ErasurePresets,
    LoadDemoModel,
)

NODE_CLASS_MAPPINGS = {node.ID: node for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.ID: node.TITLE for node in NODES}

live.add_route()
