"""BIDS names: what a file name says, and which T1w belongs to which T2w."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from func.errors import BabyAIError

RESULT_ENTITY = "desc-isotropic"


_OWN_RESULTS = ("isotropic", "uncertainty")  # values of desc that are no inputs


_BIDS_NAME = re.compile(r"(?P<entities>sub-[^_]+(?:_[a-zA-Z0-9]+-[^_]+)*)_(?P<suffix>T[12]w)\.nii(?:\.gz)?")


# How an acq label says what scripts/synthesize_anisotropic.py made: axial4mm, coronal2p5mm.
SLICING = re.compile(r"(?P<direction>axial|coronal|sagittal)(?P<thickness>\d+(p\d+)?)mm$")


# Where BIDS keeps what is not this dataset's own raw or preprocessed scans.
_FOREIGN_FOLDERS = {"derivatives", "sourcedata"}


def entities_of(path: str | Path) -> dict[str, str]:
    """BIDS entities of a T1w or T2w file by its name, plus ``suffix``; empty for any other file.

    ``sub-01_acq-axial4mm_T2w.nii.gz`` -> ``{"sub": "01", "acq": "axial4mm", "suffix": "T2w"}``
    """
    match = _BIDS_NAME.fullmatch(Path(path).name)
    if match is None:
        return {}
    entities = dict(entity.split("-", 1) for entity in match["entities"].split("_"))
    return entities | {"suffix": match["suffix"]}


def slicing_of(path: str | Path) -> tuple[str, float] | None:
    """Direction and thickness (mm) of the slices of a synthesised scan, by its name; None for any other scan.

    ``sub-01_acq-axial4mm_T2w.nii.gz`` -> ``("axial", 4.0)``; also of a reconstruction made from one
    """
    match = SLICING.search(entities_of(path).get("acq", ""))
    return (match["direction"], float(match["thickness"].replace("p", "."))) if match else None


def stem_of(path: str | Path) -> str:
    """File name without ``.nii`` or ``.nii.gz``."""
    return re.sub(r"\.nii(\.gz)?$", "", Path(path).name)


def find_scans(data_dir: str | Path) -> list[Path]:
    """Every T1w and T2w file with a BIDS name below a folder, sorted; hidden and foreign folders are left out.

    Links to folders are followed (once each); a dataset's ``derivatives`` and ``sourcedata`` are not entered.

    Raises:
        BabyAIError: no such folder.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise BabyAIError(f"The data folder {data_dir} does not exist; check --data-dir.")
    found, visited = [], {os.path.realpath(data_dir)}
    for folder, subfolders, files in os.walk(data_dir, followlinks=True):
        subfolders[:] = [
            name
            for name in sorted(subfolders)
            if not name.startswith(".")
            and name not in _FOREIGN_FOLDERS
            and not _seen(os.path.join(folder, name), visited)
        ]
        found += [Path(folder, name) for name in files if entities_of(name)]
    return sorted(found)


def _seen(folder: str, visited: set[str]) -> bool:
    real = os.path.realpath(folder)
    if real in visited:
        return True
    visited.add(real)
    return False


@dataclass(frozen=True)
class Pair:
    """A thick-slice (or up-sampled) T2w scan and the T1w scan of the same infant.

    Attributes:
        subject: BIDS label without ``sub-``.
        t1, t2: the two files.
        name: the T2w file's name without extension.
        folder: the T2w file's folder, relative to the folder that was searched.
    """

    subject: str
    t1: Path
    t2: Path
    name: str
    folder: Path = Path()


def find_pairs(data_dir: str | Path) -> tuple[list[Pair], list[BabyAIError]]:
    """Pair every T2w below a folder with its T1w by their entities sub, ses and run.

    A T1w fits unless one of the three contradicts; the one sharing most of them is taken. Several T2w may share a
    T1w. Reconstructions (``desc-isotropic``) are left out.

    Returns:
        The pairs, sorted by path, and one error for each file that could not be paired.

    Raises:
        BabyAIError: no such folder, or nothing in it with a BIDS name.
    """
    data_dir = Path(data_dir)
    scans = [(path, entities_of(path)) for path in find_scans(data_dir)]
    scans = [(path, entities) for path, entities in scans if entities.get("desc") not in _OWN_RESULTS]
    if not scans:
        raise BabyAIError(
            f"No scans were found below {data_dir}; it needs pairs named like sub-01_T1w.nii.gz and sub-01_T2w.nii.gz."
        )
    t1s, t2s = (_by_subject(scans, suffix) for suffix in ("T1w", "T2w"))
    pairs, errors, sources = [], [], {}
    for subject, candidates in t2s.items():
        for t2, entities in candidates:
            try:
                t1 = _matching_t1(t2, entities, t1s.get(subject, []))
                pair = Pair(subject, t1, t2, stem_of(t2), t2.parent.relative_to(data_dir))
                other = sources.setdefault(result_path(pair, data_dir), t2)
                if other != t2:
                    raise BabyAIError(f"{t2} and {other} would give the same result; keep one of them.")
                pairs.append(pair)
            except BabyAIError as error:
                errors.append(error)
    for subject, candidates in t1s.items():
        for t1, entities in candidates:
            if not any(_agreement(entities, other, ("sub", "ses")) for _, other in t2s.get(subject, [])):
                errors.append(BabyAIError(f"{t1} has no T2w; add one named like sub-{subject}_T2w.nii.gz."))
    return pairs, errors


def _by_subject(scans: list[tuple[Path, dict]], suffix: str) -> dict[str, list[tuple[Path, dict]]]:
    grouped: dict[str, list[tuple[Path, dict]]] = {}
    for path, entities in scans:
        if entities["suffix"] == suffix:
            grouped.setdefault(entities["sub"], []).append((path, entities))
    return grouped


def _matching_t1(t2: Path, entities: dict[str, str], candidates: list[tuple[Path, dict]]) -> Path:
    """The T1w that agrees with a T2w in most entities and contradicts it in none."""
    agreements = {t1: _agreement(entities, other) for t1, other in candidates}
    best = [t1 for t1, shared in agreements.items() if shared and shared == max(agreements.values())]
    if not best:
        raise BabyAIError(f"{t2} has no T1w; add one named like sub-{entities['sub']}_T1w.nii.gz.")
    if len(best) > 1:
        names = " and ".join(str(t1) for t1 in best)
        raise BabyAIError(f"{t2} has {len(best)} T1w candidates, {names}; keep one of them.")
    return best[0]


def _agreement(entities: dict[str, str], other: dict[str, str], keys: tuple[str, ...] = ("sub", "ses", "run")) -> int:
    """How many of the entities two scans share; 0 where one contradicts."""
    shared = [key for key in keys if key in entities and key in other]
    # BIDS counts runs, with or without leading zeros.
    same = all(
        entities[key] == other[key] or (key == "run" and entities[key].lstrip("0") == other[key].lstrip("0"))
        for key in shared
    )
    return len(shared) if same else 0


def result_path(source: Pair | str | Path, output_dir: str | Path) -> Path:
    """Where the reconstruction of a T2w goes: ``desc-isotropic`` before the suffix, the pair's own subfolder kept."""
    folder = source.folder if isinstance(source, Pair) else Path()
    stem = stem_of(source.t2 if isinstance(source, Pair) else source)
    parts = [part for part in stem.split("_") if not part.startswith("desc-")]
    return Path(output_dir, folder, "_".join([*parts[:-1], RESULT_ENTITY, parts[-1]]) + ".nii.gz")
