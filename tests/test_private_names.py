"""Private names of other libraries that the training uses, each one by name."""

import ast
import inspect
import pydoc
import re

import pytest

from avomni_lib import files
from avomni_lib.training.model import private

TRAINING = files.PROJECT_ROOT / "avomni_lib" / "training"
# Where they may stand; `self._metrics` is TRL's, and `cextension.lib` is bitsandbytes'.
DOORS = {"model/private.py", "fit/sft.py", "doctor/doctor.py"}


@pytest.mark.parametrize(
    ("owner", "name"),
    [(owner, name) for owner, names in private.PRIVATE_NAMES.items() for name in names],
)
def test_a_private_name_of_transformers_is_where_it_was(owner: str, name: str):
    place = pydoc.locate(owner)
    # Some are set on instances alone.
    is_set = rf"\.{name} = "
    assert hasattr(place, name) or re.search(is_set, inspect.getsource(inspect.getmodule(place))), (
        f"{owner}.{name} has moved"
    )


def test_the_private_names_of_trl_are_where_they_were():
    from trl import SFTTrainer

    from avomni_lib.training.fit import sft

    for name in sft.PRIVATE_NAMES:
        assert f"self.{name}[" in inspect.getsource(SFTTrainer), f"trl.SFTTrainer.{name} has moved"


def test_private_names_of_other_objects_stand_in_one_module_a_library():
    found = set()
    for path in TRAINING.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
                and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
            ):
                found.add(path.relative_to(TRAINING).as_posix())
    assert found <= DOORS, f"outside of {sorted(DOORS)}: {sorted(found - DOORS)}"
