"""The features of the data set and the names of their files, as features.csv lists them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from avomni_lib.dataset import names
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

    Names and templates become names of files, so that they are checked here.

    Args:
        path: UTF-8, with or without a byte order mark.

    Raises:
        AvomniError: there is no such file, it is another one, or a name or template in it is none.
    """
    features: dict[str, Feature] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                members = json.loads(row["clip_files_in_zip"] or "{}")
                feature = Feature(row["feature"], row["directory"], row["chunk_path"], members)
                _check(feature, str(path))
                if feature.name in features:
                    raise AvomniError(f"feature {feature.name} is listed twice", where=str(path))
                features[feature.name] = feature
        return features
    except FileNotFoundError:
        raise AvomniError(
            "this folder is not in the data set's layout: no features.csv",
            where=str(path.parent),
            fix="check dataset.local_dir; unless dataset.source is folder, run 02_download",
        ) from None
    except (KeyError, ValueError, TypeError, OSError, RecursionError, csv.Error) as error:
        raise AvomniError(f"not the data set's features.csv: {error!r}", where=str(path)) from None


def _check(feature: Feature, path: str) -> None:
    names.need("the name of a feature", feature.name, names.name_fault(feature.name), path)
    where = f"{feature.name} in {path}"
    directory, members = feature.directory, feature.members
    names.need("the directory", directory, names.path_fault(directory), where)
    fault = names.template_fault(feature.chunk_path, "chunk_id")
    names.need("the template chunk_path", feature.chunk_path, fault, where)
    fault = None if isinstance(members, dict) else "it is not an object of names"
    names.need("clip_files_in_zip", members, fault, where)
    for kind, template in members.items():
        names.need("a name in clip_files_in_zip", kind, names.name_fault(kind), where)
        fault = names.template_fault(template, "clip_id")
        names.need(f"the template of {kind}", template, fault, where)
