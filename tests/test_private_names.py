"""The private names of other libraries that the training uses still exist."""

import ast
import inspect
import pydoc
import re

import pytest

from avomni_lib import files
from avomni_lib.training.model import private

TRAINING = files.PROJECT_ROOT / "avomni_lib" / "training"
# Modules that may use them; `self._metrics` is TRL's, `cextension.lib` is bitsandbytes'.
ALLOWED_MODULES = {"model/private.py", "fit/sft.py", "doctor/doctor.py"}


@pytest.mark.parametrize(
    ("owner", "name"),
    [(owner, name) for owner, names in private.PRIVATE_NAMES.items() for name in names],
)
def test_private_name_of_transformers_exists(owner: str, name: str):
    place = pydoc.locate(owner)
    # Some are attributes of instances only.
    is_set = rf"\.{name} = "
    assert hasattr(place, name) or re.search(is_set, inspect.getsource(inspect.getmodule(place))), (
        f"{owner}.{name} has moved"
    )


def test_private_names_of_trl_exist():
    from trl import SFTTrainer

    from avomni_lib.training.fit import sft

    for name in sft.PRIVATE_NAMES:
        assert f"self.{name}[" in inspect.getsource(SFTTrainer), f"trl.SFTTrainer.{name} has moved"


def test_only_listed_modules_use_private_names():
    modules = set()
    for path in TRAINING.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
                and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
            ):
                modules.add(path.relative_to(TRAINING).as_posix())
    assert modules <= ALLOWED_MODULES, (
        f"outside of {sorted(ALLOWED_MODULES)}: {sorted(modules - ALLOWED_MODULES)}"
    )
