"""The supported families of vision-language models, one file each behind a common interface.

A new file in this folder adds a family; no other module depends on a particular one. torch is only
imported when pixels are processed, so that `plan` works on any machine.

shared           the interface, and code shared by several families
qwen3_vl         Qwen3-VL, dense or with experts
qwen3_5          Qwen3.5 and Qwen-Drive-1.0, whose layers have linear attention
internvl         InternVL3 and 3.5, in squares of 448 px
llava_onevision  LLaVA-OneVision, in squares of 384 px
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any, cast

from avomni_lib.errors import AvomniError, pick
from avomni_lib.hardware import Choice
from avomni_lib.params import Params, sections
from avomni_lib.training.backbones.shared.base import Backbone, Video, refuse_other_model

__all__ = ["Backbone", "Video", "backbone", "family", "in_4bit"]


def family(name: str) -> type[Backbone]:
    """The class of the family called `name`.

    Raises:
        AvomniError: there is none.
    """
    pick(dict.fromkeys(sections.BACKBONES), name, "backbone", "model.backbone")
    module = importlib.import_module(f"avomni_lib.training.backbones.{name}")
    for kind in vars(module).values():
        if inspect.isclass(kind) and getattr(kind, "name", None) == name:
            return cast(type[Backbone], kind)
    raise AvomniError(f"{module.__file__} has no backbone whose name is {name!r}")


def in_4bit(p: Params) -> Choice:
    """Whether a 16-bit base model is loaded in NF4: `model.load_in_4bit`, or the family default."""
    if p.model.load_in_4bit is not None:
        return Choice("nf4" if p.model.load_in_4bit else "none", "model.load_in_4bit")
    if because := family(p.model.backbone).sixteen_bit_because:
        return Choice("none", because)
    return Choice("nf4", "a quarter of the memory of 16 bit")


def backbone(name: str, config: Any = None) -> Backbone:
    """The backbone called `name`, with the numbers of a model's `config` if given.

    Args:
        config: transformers' config, or an object with the same attributes.

    Raises:
        AvomniError: there is no such family, or the config belongs to another one.
    """
    kind = family(name)
    if config is None:
        return kind()
    if config.model_type not in kind.model_types:
        raise refuse_other_model(kind, config.model_type)
    return kind.from_config(config)
