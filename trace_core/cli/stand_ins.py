"""Stand-ins for torchvision and torchaudio, if they are missing or do not load with this torch.

ComfyUI imports both in files of models that this library does not run. A stand-in can be imported with every
submodule and name. A call of anything in it raises an error that names the missing package.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import logging
import sys
import types

#: package -> module whose import tests it
PACKAGES = {"torchvision": "torchvision.transforms", "torchaudio": "torchaudio"}


class _Missing(type):
    """A class whose attributes are classes of the same metaclass."""

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(name, (), {"__module__": f"{cls.__module__}.{cls.__name__}"})

    def __call__(cls, *_, **__):
        raise ImportError(
            f"{cls.__module__}.{cls.__name__} cannot be used: install a {cls.__module__.split('.')[0]} that "
            "fits this torch"
        )


class _StandIn(types.ModuleType):
    __path__: list = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(name, (), {"__module__": self.__name__})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the given packages and every submodule of them."""

    def __init__(self, packages: set[str]):
        self.packages = packages

    def find_spec(self, name: str, path=None, target=None):
        if name.split(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module) -> None:
        return None


def install() -> list[str]:
    """Install a stand-in for every package that does not load. Returns their names.

    transformers and peft decide at import what to offer, from the packages they see. They are imported first.
    """
    importlib.import_module("transformers")
    importlib.import_module("peft")
    missing = [package for package, needed in PACKAGES.items() if not _loads(needed)]
    for name in [m for m in sys.modules if m.split(".")[0] in missing]:
        del sys.modules[name]
    if missing:
        sys.meta_path.insert(0, _Finder(set(missing)))
    return missing


def _loads(module: str) -> bool:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken binary raises RuntimeError or OSError, a missing one ImportError
        logging.getLogger(__name__).info(
            "%s cannot be used (%s); a stand-in is imported", module.split(".")[0], error
        )
        return False
    return True
