"""The age group of each subject and session, from a BIDS dataset's participants.tsv and sessions.tsv."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

from func.errors import BabyAIError, warn

AGE_GROUPS = {"newborn": 1, "1 to 5 months": 6, "6 to 11 months": 12, "12 months and older": math.inf}  # below, months
_MONTHS = {"d": 12 / 365.25, "w": 7 * 12 / 365.25, "m": 1.0, "y": 12.0}  # in a day, week, month and year


def read_age_groups(folder: Path) -> dict[tuple[str, str], str]:
    """Age groups by subject and session label; a line without a session stands for all of a subject, as ``("01", "")``.

    Read from participants.tsv and every sub-*/sub-*_sessions.tsv: the column ``age_group``, else ``age_days``,
    ``age_weeks``, ``age_months`` or ``age_years``, else ``age``, in the ``Units`` that the JSON file beside the table
    states, else in years as BIDS has it. "89+" counts as 89. An age that is no number costs only its own line its
    group, and is told on the console.

    Raises:
        BabyAIError: a table is there but is no table.
    """
    groups = {}
    for path in [folder / "participants.tsv", *sorted(folder.glob("sub-*/sub-*_sessions.tsv"))]:
        if not path.is_file():
            continue
        try:
            lines = pd.read_csv(path, sep="\t", dtype=str, encoding="utf-8-sig", encoding_errors="replace")
        except (OSError, ValueError) as error:
            raise BabyAIError(f"{path} cannot be read ({error}); correct or remove it.") from None
        if path.name != "participants.tsv":
            lines["participant_id"] = path.parent.name
        if "participant_id" not in lines:
            raise BabyAIError(f"{path} has no column participant_id; add it, or remove the file.")
        subjects = lines.participant_id.str.removeprefix("sub-")
        sessions = lines.get("session_id", pd.Series("", lines.index)).fillna("").str.removeprefix("ses-")
        found = _groups_of(lines, path)
        groups |= {(sub, ses): group for sub, ses, group in zip(subjects, sessions, found, strict=True) if group}
    return groups


def in_order(groups: pd.Series) -> pd.Series:
    """For sorting: age groups in order of age, others after them."""
    places = {name: place for place, name in enumerate(AGE_GROUPS)}
    return groups.map(places).fillna(len(places))


def group_of(groups: dict[tuple[str, str], str], subject: str, session: str) -> str:
    """The age group of a scan, by its own session, else by its subject; empty where it is not known."""
    return groups.get((subject, session)) or groups.get((subject, ""), "")


def _groups_of(lines: pd.DataFrame, path: Path) -> pd.Series:
    """The age group of every line; empty where it states no age."""
    months = pd.Series(math.nan, lines.index)
    for column, unit in _age_columns(lines, path):
        stated = lines[column].str.strip()
        numbers = pd.to_numeric(stated.str.rstrip("+"), errors="coerce")
        for line in lines.index[stated.notna() & numbers.isna()]:
            subject, age = lines.participant_id[line], stated[line]
            warn(f"{path}: the {column} of {subject}, '{age}', is no number; it counts in no age group.")
        months = months.fillna(numbers * _MONTHS[unit])
    found = pd.cut(months, [0, *AGE_GROUPS.values()], right=False, labels=list(AGE_GROUPS)).astype(object)
    return lines.get("age_group", found).fillna(found).fillna("")


def _age_columns(lines: pd.DataFrame, path: Path) -> list[tuple[str, str]]:
    """The columns that state ages, with the first letter of their unit."""
    columns = [(f"age_{unit}", unit[0]) for unit in ("days", "weeks", "months", "years")]
    try:
        described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8-sig"))["age"]["Units"]
    except (OSError, ValueError, KeyError, TypeError):
        described = "years"
    if (unit := str(described).strip().lower()[:1]) in _MONTHS:
        columns.append(("age", unit))
    elif "age" in lines:
        warn(f"{path}: ages in '{described}' are not understood; state days, weeks, months or years.")
    return [(column, unit) for column, unit in columns if column in lines]
