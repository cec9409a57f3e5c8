"""The JSON sidecars of NIfTI files, with what they inherit (BIDS specification 1.10, "The inheritance principle")."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path

from func.errors import BabyAIError, warn
from func.scans.bids import dataset_of, entities_of, stem_of


def sidecar_path(path: str | Path) -> Path:
    """The JSON file that belongs to a NIfTI file."""
    return Path(path).with_name(stem_of(path) + ".json")


def read_sidecar(path: str | Path) -> dict:
    """What the JSON sidecar of a NIfTI file states, and what it inherits from those above it in its dataset.

    Empty where there is none. A link to a sidecar that is not there (git-annex) is left out with a warning.

    Raises:
        BabyAIError: a sidecar is there but is not a JSON object.
    """
    content = {}
    for sidecar in _applicable(Path(path)):
        if sidecar.is_file():
            content |= _read_object(sidecar)
        elif sidecar.is_symlink():
            warn(f"{sidecar} is a link to a file that is not there, and is left out (git-annex or DataLad: get it).")
    return content


def _applicable(scan: Path) -> list[Path]:
    """The sidecars that apply to a scan, those that override the others last."""
    if not entities_of(scan):
        return [sidecar_path(scan)]
    *entities, suffix = stem_of(scan).split("_")
    found = []
    for folder in _folders_down_to(scan):
        stems = (path.stem.split("_") for path in folder.glob(f"*{suffix}.json"))
        fitting = [stem for stem in stems if stem[-1] == suffix and {*stem[:-1]} <= {*entities}]
        found += [folder / ("_".join(stem) + ".json") for stem in sorted(fitting, key=len)]
    return found


def _folders_down_to(scan: Path) -> Iterable[Path]:
    """The folders from the scan's dataset down to its own."""
    dataset = dataset_of(scan)
    between = itertools.takewhile(lambda folder: folder != dataset, scan.absolute().parents)
    return reversed([*between, dataset])


def _read_object(path: Path) -> dict:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BabyAIError(f"{path} cannot be read ({error.strerror}); check the file.") from None
    try:
        found = _parse(content, path)
    except (ValueError, RecursionError) as error:
        line = f" (see line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise BabyAIError(f"{path} is not a JSON object{line}; correct or remove it.") from None
    if not isinstance(found, dict):
        raise BabyAIError(f"{path} is not a JSON object; correct or remove it.")
    return found


def _parse(content: bytes, path: Path) -> object:
    """JSON as it should be; or, with a warning, as it often is: with a byte order mark, in Latin-1, with line breaks in
    its texts or a comma before a closing bracket, or nothing at all.

    Raises:
        ValueError: it is not JSON in any of these ways.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except ValueError:
        pass
    try:
        text = content.decode(json.detect_encoding(content))
    except ValueError:
        text = content.decode("latin-1")
    found = json.loads(re.sub(r",(?=\s*[}\]])", "", text.strip("\0 \r\n\t")) or "{}", strict=False)
    warn(f"{path} is not clean JSON in UTF-8 (accents, line breaks, commas, or empty); it was read anyway.")
    return found
