"""Which subjects are trained on, chosen by and tested on: the split, as runs/RUN/split.csv holds it."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from func.errors import BabyAIError
from func.scans.files import atomic

PARTS = ("train", "validation", "test")


def split_subjects(labels: Iterable[str], seed: int) -> dict[str, str]:
    """The part of each subject, 70 % train, 15 % validation, 15 % test; at least one each of the latter two.

    Raises:
        BabyAIError: fewer than three subjects.
    """
    labels = sorted(labels)
    if len(labels) < 3:
        raise BabyAIError(
            f"{len(labels)} subject{'' if len(labels) == 1 else 's'} cannot be split into train, validation and test; "
            "add more, or give a --split file."
        )
    held_out = max(1, round(0.15 * len(labels)))
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = ["validation"] * held_out + ["test"] * held_out + ["train"] * (len(labels) - 2 * held_out)
    return {labels[index]: part for index, part in sorted(zip(order.tolist(), parts, strict=True))}


def read_split(path: Path) -> dict[str, str]:
    """The part of each subject (label without ``sub-``), from a CSV file with the columns subject and part.

    Raises:
        BabyAIError: the file is missing or is no split.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"subject", "part"} <= {*(rows.fieldnames or ())}:
                raise KeyError
            parts = {row["subject"].removeprefix("sub-"): row["part"] for row in rows}
    except OSError as error:
        raise BabyAIError(f"{path} cannot be read ({error.strerror}); check --split.") from None
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise BabyAIError(
            f"{path} is no split: it needs the columns subject and part, commas between, as runs/RUN/split.csv has."
        ) from None
    if unknown := set(parts.values()) - set(PARTS):
        raise BabyAIError(f"{path} names a part '{min(map(str, unknown))}'; use {', '.join(PARTS)}.")
    return parts


def add_split(group: argparse._ArgumentGroup) -> None:
    """``--split`` and ``--part``, for scripts that work on the subjects of one part of a split."""
    group.add_argument(
        "--split",
        type=Path,
        metavar="FILE",
        help="only the subjects of one part of a split, which training.py keeps in runs/RUN/split.csv (default: all)",
    )
    group.add_argument("--part", choices=PARTS, default="test", help="of the split (default: %(default)s)")


def wanted_subjects(split: Path | None, part: str) -> Callable[[str], bool]:
    """Tells of a subject's label (without ``sub-``) whether it is in the part of a split; of any, without a split.

    Raises:
        BabyAIError: the file is no split, or has no subject in this part.
    """
    if split is None:
        return lambda label: True
    labels = {label for label, its_part in read_split(split).items() if its_part == part}
    if not labels:
        raise BabyAIError(f"{split} has no subject in the part {part}; name another with --part.")
    return labels.__contains__


def write_split(path: Path, parts: Mapping[str, str]) -> None:
    """Write a split file."""
    with atomic(path) as unfinished:
        lines = ["subject,part", *(f"sub-{label},{part}" for label, part in parts.items())]
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_split(parts: Mapping[str, str], labels: Iterable[str]) -> None:
    """Refuse a split that has nobody to train on, or names subjects who are not in the data.

    Raises:
        BabyAIError: it is such a split.
    """
    if "train" not in parts.values():
        raise BabyAIError("The split has no training subject; edit the split.")
    if absent := set(parts) - set(labels):
        raise BabyAIError(
            f"The split names sub-{min(absent)}, of whom there is no isotropic pair in --data-dir; add or remove it."
        )
