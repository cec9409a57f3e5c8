"""The output folder as a BIDS derivative dataset (https://bids-specification.readthedocs.io, version 1.10).

The inputs' dataset is linked as ``raw``, so that ``bids:raw:sub-01/anat/sub-01_T2w.nii.gz`` names an input.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from func.errors import BabyAIError
from func.scans.bids import Pair, dataset_of, entities_of, result_path, session_of
from func.scans.files import atomic, save_json

BIDS_VERSION = "1.10.0"
CODE = "https://huggingface.co/almalennartsson/baby-ai"
IGNORED = ("report.html", "figures")  # what the report adds is no part of the dataset
README = """# BABY-AI reconstructions

Isotropic T2w scans of infants (`*_desc-isotropic_T2w.nii.gz`), reconstructed from thick-slice T2w and isotropic T1w
scans. The JSON file beside each says from what, with which weights and settings, and how good the input was. Open
`report.html` to look at them.
"""


def derivative_path(pair: Pair, output_dir: str | Path) -> Path:
    """Where BIDS wants the reconstruction of a pair: ``sub-01[/ses-1]/anat/sub-01_..._desc-isotropic_T2w.nii.gz``."""
    entities, name = entities_of(pair.t2), result_path(pair, "").name
    session = session_of(pair.t2)
    if session and "ses" not in entities:  # only its folder tells
        name = name.replace(f"sub-{entities['sub']}", f"sub-{entities['sub']}_ses-{session}", 1)
    folders = [f"sub-{entities['sub']}", *([f"ses-{session}"] if session else []), "anat"]
    return Path(output_dir, *folders, name)


def derivative_paths(pairs: Iterable[Pair], output_dir: str | Path) -> dict[Pair, Path]:
    """The same for many pairs.

    Raises:
        BabyAIError: two of them would share one place.
    """
    taken: dict[Path, Pair] = {}
    for pair in pairs:
        other = taken.setdefault(derivative_path(pair, output_dir), pair)
        if other is not pair:
            datasets = sorted({str(dataset_of(scan.t2)) for scan in (other, pair)})
            remedy = "give their names an entity that tells them apart, such as run-2"
            if len(datasets) > 1:
                remedy = f"run each dataset with a --data-dir and an --output-dir of its own: {' and '.join(datasets)}"
            raise BabyAIError(f"{other.t2} and {pair.t2} would share one place in a BIDS dataset; {remedy}.")
    return {pair: path for path, pair in taken.items()}


def describe_dataset(output_dir: Path, data_dir: Path, version: str) -> None:
    """Write ``dataset_description.json``, ``README.md`` and ``.bidsignore``; what the folder has already is kept.

    Raises:
        BabyAIError: they could not be written.
    """
    raw = Path(os.path.relpath(data_dir.resolve(), output_dir.resolve())).as_posix()
    description = {
        "Name": "BABY-AI reconstructions",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "BABY-AI",
                "Version": version,
                "CodeURL": CODE,
                "Description": "Anisotropic-to-isotropic reconstruction of infant T2w scans",
            }
        ],
        "SourceDatasets": [{"URL": raw}],
        "DatasetLinks": {"raw": raw},
    }
    if not (output_dir / "dataset_description.json").exists():
        save_json(output_dir / "dataset_description.json", description)
    for name, text in ((".bidsignore", "\n".join(IGNORED) + "\n"), ("README.md", README)):
        if not (output_dir / name).exists():
            with atomic(output_dir / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
