"""MindFormers' package `checkpoint`, imported from a wheel without what the rest of MindFormers
needs: torchless tokenizers, datasets, an Ascend."""

from __future__ import annotations

import sys
import types
from importlib import import_module

import mindspore

# Packages whose __init__ imports all of MindFormers. Their modules are imported as they are.
PACKAGES = ("", ".tools", ".utils", ".checkpoint", ".core", ".core.context", ".pynative")


def import_checkpoint(wheel: str) -> types.ModuleType:
    """`mindformers.checkpoint.checkpoint`, of the wheel at this path.

    One function of another package is a stand-in: `get_context`, which would set MindSpore's
    context up for an Ascend, and of which only "mode" is asked.
    """
    for suffix in (*PACKAGES, ".pynative.pet"):
        name = f"mindformers{suffix}"
        package = types.ModuleType(name)
        package.__path__ = [f"{wheel}/{name.replace('.', '/')}"]
        add_module(package)
    context = types.ModuleType("mindformers.core.context.build_context")
    context.get_context = mindspore.get_context  # type: ignore[attr-defined]
    add_module(context)
    sys.path.insert(0, wheel)
    tools = sys.modules["mindformers.tools"]
    tools.get_output_root_path = import_module(  # type: ignore[attr-defined]
        "mindformers.tools.utils"
    ).get_output_root_path
    return import_module("mindformers.checkpoint.checkpoint")


def add_module(module: types.ModuleType) -> None:
    sys.modules[module.__name__] = module
    parent, _, name = module.__name__.rpartition(".")
    if parent:
        setattr(sys.modules[parent], name, module)
