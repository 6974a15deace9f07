"""Run ComfyUI's main.py (working directory: its folder) with stand-ins for packages that do not load
beside this torch.
"""

import os
import runpy
import sys

from trace_core.cli import stand_ins

stand_ins.install()

sys.path[0] = os.getcwd()  # instead of this script's folder
sys.argv = ["main.py", *sys.argv[1:]]
runpy.run_path("main.py", run_name="__main__")
