"""The JSON sidecars beside NIfTI files."""

from __future__ import annotations

import json
from pathlib import Path

from func.errors import BabyAIError
from func.scans.bids import stem_of

_MAX_SIDECAR_BYTES = 2**24


def sidecar_path(path: str | Path) -> Path:
    """The JSON file that belongs to a NIfTI file."""
    return Path(path).with_name(stem_of(path) + ".json")


def read_sidecar(path: str | Path) -> dict:
    """The JSON sidecar of a NIfTI file, empty where there is none.

    Raises:
        BabyAIError: the sidecar is there but is not a JSON object.
    """
    path = sidecar_path(path)
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_SIDECAR_BYTES:
            raise ValueError
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    except OSError as error:
        raise BabyAIError(f"{path} cannot be read ({error.strerror}); check the file.") from None
    if not isinstance(content, dict):
        raise BabyAIError(f"{path} is not a JSON object; correct or remove it.")
    return content
