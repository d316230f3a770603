"""Parameters: what a params file may say, and how it is read.

schema         `Params`: one checked params file; all mistakes at once, with the nearest right name
sections       every parameter: type, bounds, default, meaning
online         parameters for using a trained model: live cameras, driving
lerobot        parameters of data sets in LeRobot's layout
section        base class of the sections: how values are converted
grids          the rig's cameras by name, and the grids that a params file may name
yaml_file      YAML and `--set`; refuses duplicate keys and values that YAML would change
earlier_keys   parameters by the names that earlier versions used
notebook_cell  a notebook's parameters cell
user_code      objects in user code that a params file names
"""

from avomni_lib.params.schema import (
    CONFIDENTIAL,
    EXTENDS,
    NOT_ANONYMISED,
    Params,
    left_out,
    table,
)

__all__ = ["CONFIDENTIAL", "EXTENDS", "NOT_ANONYMISED", "Params", "left_out", "table"]
