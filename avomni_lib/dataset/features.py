"""The features of the data set and the names of their files, as features.csv lists them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from avomni_lib.errors import AvomniError

FEATURES_FILE = "features.csv"


@dataclass(frozen=True)
class Feature:
    """One sensor or label stream, and the names of its files.

    Attributes:
        name: As `camera_front_wide_120fov`.
        directory: Its group: labels, calibration, camera, lidar, radar.
        chunk_path: Template of a chunk's file, with `{chunk_id:04d}`.
        members: Kind -> template of a clip's member in the chunk's zip, with `{clip_id}`; empty
            where a chunk's file is one parquet table.
    """

    name: str
    directory: str
    chunk_path: str
    members: Mapping[str, str]


def read_features(path: Path) -> dict[str, Feature]:
    """Every feature by its name, in the order of the file; columns that nobody knows are left.

    Raises:
        AvomniError: there is no such file, or it is another one.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {
            row["feature"]: Feature(
                row["feature"],
                row["directory"],
                row["chunk_path"],
                json.loads(row["clip_files_in_zip"] or "{}"),
            )
            for row in rows
        }
    except FileNotFoundError:
        raise AvomniError(
            "this folder is not in the data set's layout: no features.csv",
            where=str(path.parent),
            fix="run 02_download, or check dataset.local_dir",
        ) from None
    except (KeyError, ValueError, TypeError) as error:
        raise AvomniError(f"not the data set's features.csv: {error!r}", where=str(path)) from None
