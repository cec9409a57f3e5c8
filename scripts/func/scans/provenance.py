"""What a result was made from, and whether the same would be made again."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from func.errors import BabyAIError
from func.scans.dicom import dicom_files, is_dicom, source_name
from func.scans.sidecars import read_sidecar

_TAIL = 2**16  # bytes
# Settings that change nothing but rounding, or only decide whether there is a result.
_NO_DIFFERENCE = ("Device", "MinSimilarity")


def fingerprint(path: Path) -> str | None:
    """A digest that changes with a scan's content, as hexadecimal digits; None where it cannot be read.

    Of a gzip file the length and the end are read, which holds the checksum of the content; of others everything.
    """
    try:
        if is_dicom(path):
            digests = sorted(map(digest, dicom_files(path)))
            return hashlib.sha256("".join([*digests, source_name(path)]).encode()).hexdigest()
        with path.open("rb") as stream:
            if stream.read(2) != b"\x1f\x8b":
                return digest(path)
            size = path.stat().st_size
            stream.seek(max(0, size - _TAIL))
            return hashlib.sha256(size.to_bytes(8, "little") + stream.read()).hexdigest()
    except OSError:
        return None


def digest(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits; read once, until the file is written anew."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


@lru_cache
def _digest(path: Path, size: int, written: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def inputs_of(t2: Path, t1: Path | None) -> dict:
    """Fingerprints of a T2w, of what its sidecars state, and of its T1w, for the JSON sidecar of a result."""
    try:
        stated = json.dumps(read_sidecar(t2), sort_keys=True).encode()
    except BabyAIError:
        stated = b""
    found = {"T2w": fingerprint(t2), "T2wSidecar": hashlib.sha256(stated).hexdigest()}
    return found | ({"T1w": fingerprint(t1)} if t1 else {})


def differences(result: Path, made_with: dict) -> list[str]:
    """What of a result that is there was otherwise when it was made, in words; empty where the same would be made.

    Args:
        result: a volume with its JSON sidecar.
        made_with: the entries ``Inputs``, ``Weights`` and ``Settings`` that its sidecar would get now.
    """
    try:
        found = read_sidecar(result)
    except BabyAIError:
        found = {}
    entries = {key: found.get(key) if isinstance(found.get(key), dict) else {} for key in made_with}
    if not any(entries.values()):
        return ["unknown settings (its JSON sidecar does not state them)"]
    words = []
    if entries["Weights"].get("SHA256") != made_with["Weights"]["SHA256"]:
        words.append(f"other weights ({entries['Weights'].get('Name', 'unknown')})")
    words += [f"another {key}" for key, value in made_with["Inputs"].items() if entries["Inputs"].get(key) != value]
    settings = made_with["Settings"]
    words += [
        f"{key} {json.dumps(entries['Settings'].get(key))} instead of {json.dumps(settings.get(key))}"
        for key in sorted(settings.keys() | entries["Settings"].keys())
        if key not in _NO_DIFFERENCE and entries["Settings"].get(key) != settings.get(key)
    ]
    return words
