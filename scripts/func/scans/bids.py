"""BIDS names: what a file name says, and which T1w belongs to which T2w."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from func.errors import BabyAIError, warn
from func.scans.files import is_dicom_file

RESULT_ENTITY = "desc-isotropic"
UNCERTAINTY_ENTITY = "desc-uncertainty"

_BIDS_NAME = re.compile(r"(?P<entities>sub-[^_]+(?:_[a-zA-Z0-9]+-[^_]+)*)_(?P<suffix>T[12]w)\.nii(?:\.gz)?")
# Names that were probably meant to be such.
_NEARLY = re.compile(r"[^.].*[_-]T[12]w?( \(\d+\))?\.(nii|nii\.gz|nii\.bz2|img|mgz|mgh|nrrd|mnc)", re.IGNORECASE)
# How an acq label says what scripts/synthesize_anisotropic.py made: axial4mm, coronal2p5mm.
_SLICING = re.compile(r"(?P<direction>axial|coronal|sagittal)(?P<thickness>\d+(p\d+)?)mm$")
_NO_MAGNITUDE = ("phase", "real", "imag")  # values of part
_LOOKED_AT = 100  # files of a folder without scans, to see what they are
_FOREIGN_FOLDERS = ("derivatives", "sourcedata")  # where BIDS keeps what is not this dataset's own


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
    match = _SLICING.search(entities_of(path).get("acq", ""))
    return (match["direction"], float(match["thickness"].replace("p", "."))) if match else None


def own_acquisition(path: str | Path) -> str:
    """The acq label that a scan had before it was synthesised from; empty where it had none."""
    return _SLICING.sub("", entities_of(path).get("acq", ""))


def is_result(path: str | Path) -> bool:
    """Whether scripts/inference.py made a file, by its name: a reconstruction or a map of its uncertainty."""
    return f"desc-{entities_of(path).get('desc')}" in (RESULT_ENTITY, UNCERTAINTY_ENTITY)


def is_original(path: str | Path) -> bool:
    """Whether a scan is neither a result nor synthesised, by its name."""
    return not is_result(path) and slicing_of(path) is None


def session_of(path: str | Path) -> str | None:
    """The label of a scan's session, by its name, or else by its folder; None where neither tells."""
    folders = [part[4:] for part in Path(path).parent.parts if part.startswith("ses-")]
    return entities_of(path).get("ses") or (folders[-1] if folders else None)


def stem_of(path: str | Path) -> str:
    """File name without ``.nii`` or ``.nii.gz``."""
    return re.sub(r"\.nii(\.gz)?$", "", Path(path).name)


def dataset_of(path: str | Path) -> Path:
    """The root of the dataset that a file belongs to: where ``dataset_description.json`` is, or else its subjects are.

    A file outside of any dataset belongs to its own folder.
    """
    path = Path(path).absolute()
    for folder in path.parents:
        if (folder / "dataset_description.json").exists() or folder.parent.name in _FOREIGN_FOLDERS:
            return folder
    home = _subject_folder(path)
    return home.parent if home else path.parent


def is_foreign(folder: str | Path, data_dir: str | Path) -> bool:
    """Whether :func:`find_scans` leaves a folder below ``data_dir`` out: it is in ``derivatives`` or ``sourcedata``."""
    parts = Path(folder).resolve().relative_to(Path(data_dir).resolve()).parts
    return any(part in _FOREIGN_FOLDERS or part.startswith(".") for part in parts)


def find_scans(data_dir: str | Path, on_error: Callable[[BabyAIError], None] | None = None) -> list[Path]:
    """Every T1w and T2w file with a BIDS name below a folder, sorted.

    Links to folders are followed (once each). Hidden folders and a dataset's ``derivatives`` and ``sourcedata`` are
    not entered, and the phase, real and imaginary parts of a complex scan are left out. Files that have nearly a BIDS
    name are told of.

    Args:
        on_error: called with what is wrong with each folder that cannot be read, where such folders are to be left out.

    Raises:
        BabyAIError: no such folder; or a folder in it cannot be read, without ``on_error``.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        fault = "is a file" if data_dir.exists() else "does not exist"
        raise BabyAIError(f"The data folder {data_dir} {fault}; check --data-dir.")

    def unreadable(fault: OSError) -> None:
        error = BabyAIError(f"The folder {fault.filename} cannot be read ({fault.strerror}); check its permissions.")
        if on_error is None:
            raise error
        on_error(error)

    found, nearly, visited = [], [], {os.path.realpath(data_dir)}
    for folder, subfolders, files in os.walk(data_dir, onerror=unreadable, followlinks=True):
        subfolders[:] = [
            name
            for name in sorted(subfolders)
            if not name.startswith(".")
            and name not in _FOREIGN_FOLDERS
            and not _seen(os.path.join(folder, name), visited)
        ]
        found += [Path(folder, name) for name in files if entities_of(name)]
        nearly += [Path(folder, name) for name in files if not entities_of(name) and _NEARLY.fullmatch(name)]
    if nearly:
        others = f" and {len(nearly) - 1} more files" if len(nearly) > 1 else ""
        warn(f"{min(nearly)}{others} may be meant as scans, but are left out: they need names like sub-01_T2w.nii.gz.")
    return sorted(path for path in found if entities_of(path).get("part") not in _NO_MAGNITUDE)


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
        subject: BIDS label without ``sub-``; where several datasets below the folder that was searched use one label,
            with the dataset's folder before it (``siteA/01``).
        t1, t2: the two files.
        name: the T2w file's name without extension.
        folder: the T2w file's folder, relative to the folder that was searched.
        others: further T2w stacks of the infant, to be put together with ``t2`` to one result.
        masks: of the head in ``t2`` and each of ``others``; none by default.
    """

    subject: str
    t1: Path | None
    t2: Path
    name: str
    folder: Path = Path()
    others: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()

    @property
    def stacks(self) -> tuple[Path, ...]:
        """All T2w files."""
        return self.t2, *self.others


def find_pairs(data_dir: str | Path, t1w_filter: Sequence[str] = ()) -> tuple[list[Pair], list[BabyAIError]]:
    """Pair every T2w below a folder with its T1w: of the same dataset, the same subject's folder and the same session.

    One T1w serves all T2w of its session. Of several, one without contrast agent is preferred, in the T2w's own space
    (native, where the T2w is), processed as the T2w is, of the same run and acquisition. Results are left out.

    Args:
        t1w_filter: entities that the T1w must have, such as ``acq-mprage``; ``rec-`` for one that it must not have.

    Returns:
        The pairs, sorted by path, and one error for each file that could not be paired or folder that cannot be read.

    Raises:
        BabyAIError: no such folder, or nothing in it with a BIDS name.
    """
    data_dir = Path(data_dir)
    errors: list[BabyAIError] = []
    scans = [_Scan.at(path) for path in find_scans(data_dir, errors.append) if not is_result(path)]
    if not scans and not errors:
        raise _nothing_found(data_dir, "pairs named like sub-01_T1w.nii.gz and sub-01_T2w.nii.gz")
    pairs: list[Pair] = []
    for subject, t1s, t2s in _subjects(scans, data_dir):
        for t2 in t2s:
            try:
                t1 = _best_t1(t2, [t1 for t1 in t1s if t1.may_share_session(t2)], t1w_filter)
                pairs.append(Pair(subject, t1.path, t2.path, stem_of(t2.path), t2.path.parent.relative_to(data_dir)))
            except BabyAIError as error:
                errors.append(error)
        for t1 in t1s:
            if not any(t1.may_share_session(t2) for t2 in t2s):
                errors.append(BabyAIError(f"{t1.path} has no T2w; add one named like {t1.partner('T2w')}."))
    return _without_doubles(sorted(pairs, key=lambda pair: pair.t2), errors), errors


def _without_doubles(pairs: list[Pair], errors: list[BabyAIError]) -> list[Pair]:
    """The pairs but those whose result would replace that of one before, each of which adds an error."""
    sources: dict[Path, Path] = {}
    for pair in pairs:
        other = sources.setdefault(result_path(pair, ""), pair.t2)
        if other != pair.t2:
            errors.append(BabyAIError(f"{pair.t2} and {other} would give the same result; keep one of them."))
    return [pair for pair in pairs if pair.t2 in sources.values()]


@dataclass(frozen=True)
class _Scan:
    path: Path
    entities: dict[str, str]

    @classmethod
    def at(cls, path: Path) -> _Scan:
        """A scan with its entities; a session that only its folder's name tells is one of them."""
        session = session_of(path)
        return cls(path, entities_of(path) | ({"ses": session} if session else {}))

    def may_share_session(self, other: _Scan) -> bool:
        sessions = {scan.entities["ses"] for scan in (self, other) if "ses" in scan.entities}
        return len(sessions) < 2

    def partner(self, suffix: str) -> str:
        """The name of a scan that would share its session."""
        shared = [f"{key}-{self.entities[key]}" for key in ("sub", "ses") if key in self.entities]
        return "_".join([*shared, f"{suffix}.nii.gz"])

    def has(self, entity: str) -> bool:
        """Whether it has an entity, such as ``run-2`` (written with leading zeros or not); of ``run-``, whether not."""
        key, _, value = entity.partition("-")
        return _plain(key, self.entities.get(key, "")) == _plain(key, value)

    def shares(self, key: str, other: _Scan) -> bool:
        return other.has(f"{key}-{self.entities.get(key, '')}")


def _plain(key: str, value: str) -> str:
    return value.lstrip("0") if key == "run" else value


def _subjects(scans: list[_Scan], data_dir: Path) -> list[tuple[str, list[_Scan], list[_Scan]]]:
    """The label, the T1w and the T2w scans of each subject: of one label, and in one place."""
    suffixes: dict[tuple[Path, str], set[str]] = {}
    for scan in scans:
        suffixes.setdefault((scan.path.parent, scan.entities["sub"]), set()).add(scan.entities["suffix"])
    complete = {place for place, found in suffixes.items() if len(found) == 2}
    places: dict[str, dict[Path, list[_Scan]]] = {}
    for scan in scans:
        label = scan.entities["sub"]
        places.setdefault(label, {}).setdefault(_place(scan, data_dir, complete), []).append(scan)
    subjects = []
    for label, homes in places.items():
        shared = len(homes) == 1 or _sessions_differ(homes.values())
        for home, own in homes.items():
            subject = label if shared else (home.relative_to(data_dir) / label).as_posix()
            t1s, t2s = ([scan for scan in own if scan.entities["suffix"] == suffix] for suffix in ("T1w", "T2w"))
            subjects.append((subject, t1s, t2s))
    return subjects


def _place(scan: _Scan, data_dir: Path, complete: set[tuple[Path, str]]) -> Path:
    """Where a subject's scans belong together, so that one label may mean two infants in two places.

    That is the folder that holds the subject's folder; for scans without one, the nearest folder that holds both a T1w
    and a T2w of theirs (``complete``) or is a dataset; failing all that, the folder that was searched.
    """
    if home := _subject_folder(scan.path):
        return home.parent if home != data_dir and home.is_relative_to(data_dir) else data_dir
    for folder in scan.path.parents:
        if (folder, scan.entities["sub"]) in complete or (folder / "dataset_description.json").exists():
            return folder
        if folder == data_dir:
            break
    return data_dir


def _subject_folder(path: Path) -> Path | None:
    name = f"sub-{entities_of(path).get('sub')}"
    return next((folder for folder in path.parents if folder.name == name), None)


def _sessions_differ(groups) -> bool:
    """Whether groups of scans are told apart by their sessions alone: one infant, a folder for each visit."""
    sessions = [{scan.entities.get("ses") for scan in group} for group in groups]
    together = set().union(*sessions)
    return None not in together and len(together) == sum(map(len, sessions))


def _best_t1(t2: _Scan, t1s: list[_Scan], t1w_filter: Sequence[str]) -> _Scan:
    """The T1w of a session that goes best with a T2w.

    Raises:
        BabyAIError: there is none, or several go equally well.
    """
    if not t1s:
        raise BabyAIError(
            f"{t2.path} has no T1w in its dataset, subject folder and session; add one named like "
            f"{t2.partner('T1w')}, or reconstruct without (inference.py --without-t1w)."
        )
    allowed = [t1 for t1 in t1s if all(t1.has(entity) for entity in t1w_filter)]
    if not allowed:
        raise BabyAIError(f"{t2.path} has no T1w with {' '.join(t1w_filter)}, but {_listed(t1s)}; change --t1w-filter.")

    def misfit(t1: _Scan) -> tuple[bool, ...]:
        same_acquisition = "acq" in t1.entities and t1.shares("acq", t2)
        differing = [not t1.shares(key, t2) for key in ("ses", "space", "desc", "rec", "run")]
        return "ce" in t1.entities, *differing, not same_acquisition

    least = min(map(misfit, allowed))
    best = [t1 for t1 in allowed if misfit(t1) == least]
    if len(best) > 1:
        first, second = (set(stem_of(t1.path).split("_")) for t1 in best[:2])
        example = next(iter(sorted(first - second) or sorted(second - first)), None)
        remedy = f"choose one with --t1w-filter, as with --t1w-filter {example}" if example else "keep one of them"
        raise BabyAIError(f"{t2.path} has {len(best)} T1w candidates, {_listed(best)}; {remedy}.")
    return best[0]


def _listed(scans: list[_Scan]) -> str:
    return " and ".join(str(scan.path) for scan in scans)


def find_t2w_alone(data_dir: str | Path) -> tuple[list[Pair], list[BabyAIError]]:
    """Every T2w below a folder, as a pair that has no T1w; returns what :func:`find_pairs` does, and raises the same.

    Raises:
        BabyAIError: no such folder, or no T2w in it.
    """
    data_dir = Path(data_dir)
    errors: list[BabyAIError] = []
    found = [path for path in find_scans(data_dir, errors.append) if not is_result(path)]
    t2s = [path for path in found if entities_of(path)["suffix"] == "T2w"]
    if not t2s and not errors:
        raise _nothing_found(data_dir, "scans named like sub-01_T2w.nii.gz")
    pairs = [Pair(entities_of(t2)["sub"], None, t2, stem_of(t2), t2.parent.relative_to(data_dir)) for t2 in t2s]
    return _without_doubles(pairs, errors), errors


def _nothing_found(data_dir: Path, needed: str) -> BabyAIError:
    """The error on a folder without scans, with another mend where it holds DICOM files."""
    files = islice((path for path in data_dir.rglob("*") if path.is_file()), _LOOKED_AT)
    if any(map(is_dicom_file, files)):
        return BabyAIError(
            f"No scans were found below {data_dir}, but DICOM files; give each infant's folders to inference.py with "
            f"--t1, --t2 and --output, or convert them to {needed} (dcm2niix -z y -f sub-01_T2w)."
        )
    return BabyAIError(f"No scans were found below {data_dir}; it needs {needed}.")


def put_together(pairs: Iterable[Pair]) -> list[Pair]:
    """One pair for each session, with all of its T2w stacks; its name keeps the entities that these share."""
    sessions: dict[tuple, list[Pair]] = {}
    for pair in pairs:
        sessions.setdefault((pair.subject, pair.folder, session_of(pair.t2), pair.t1), []).append(pair)
    together = []
    for first, *others in sessions.values():
        stems = [stem_of(pair.t2).split("_") for pair in (first, *others)]
        name = "_".join(part for part in stems[0] if all(part in stem for stem in stems))
        together.append(replace(first, name=name, others=tuple(pair.t2 for pair in others)))
    return together


def result_path(source: Pair | str | Path, output_dir: str | Path) -> Path:
    """Where the reconstruction of a T2w goes: ``desc-isotropic`` before the suffix, the pair's own subfolder kept."""
    folder = source.folder if isinstance(source, Pair) else Path()
    single = source.t2 if isinstance(source, Pair) else source
    stem = source.name if isinstance(source, Pair) and source.others else stem_of(single)
    parts = [part for part in stem.split("_") if not part.startswith("desc-")]
    return Path(output_dir, folder, "_".join([*parts[:-1], RESULT_ENTITY, parts[-1]]) + ".nii.gz")
