"""Run ComfyUI's main.py (working directory: its folder) without a torchvision that loads beside this torch.

ComfyUI imports torchvision in model files that are not run here. transformers and peft decide at import what they offer from
the packages they see, so they are imported first.
"""

import importlib.machinery
import os
import runpy
import sys
import types

import peft  # noqa: F401
import transformers  # noqa: F401

package, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
package.__path__ = []
package.__spec__ = importlib.machinery.ModuleSpec("torchvision", None, is_package=True)
transforms.__spec__ = importlib.machinery.ModuleSpec("torchvision.transforms", None)
package.transforms = transforms
sys.modules["torchvision"], sys.modules["torchvision.transforms"] = package, transforms

sys.path[0] = os.getcwd()  # instead of this script's folder
sys.argv = ["main.py", *sys.argv[1:]]
runpy.run_path("main.py", run_name="__main__")
