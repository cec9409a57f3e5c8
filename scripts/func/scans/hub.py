"""The published files on the Hugging Face Hub, and what to do when they cannot be had.

Cache, locks, progress and the resuming of broken transfers are `huggingface_hub`'s own, and so are the environment
variables `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE`. A file already in the cache is used without asking the Hub.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from func.errors import BabyAIError

REPO_ROOT = Path(__file__).resolve().parents[3]
BUNDLED_WEIGHTS = REPO_ROOT / "weights" / "compact.pth"

HUB_REPO = "almalennartsson/baby-ai"
WEIGHTS_FILE = "pretrained_weights.pth"
ATLAS_FILE = "infant_atlas.nii.gz"
DEMO_T1_FILE = "demo_t1w_input.nii.gz"
DEMO_T2_FILE = "demo_t2w_input.nii.gz"

_REMEDIES = {
    WEIGHTS_FILE: "use --weights bundled, or give --weights the path of a copy",
    ATLAS_FILE: "give --atlas the path of a copy",
}
_OTHER_REMEDY = "go on without it"


def find_weights(choice: str | Path) -> Path:
    """The weights file meant by `bundled`, `babyai` (the published weights, from the Hub) or a path.

    Raises:
        BabyAIError: the file is not there and cannot be had.
    """
    if str(choice) == "babyai":
        return fetch(WEIGHTS_FILE)
    if str(choice) == "bundled":
        if not BUNDLED_WEIGHTS.is_file():
            raise BabyAIError(f"The bundled weights {BUNDLED_WEIGHTS} are missing; get the repository again.")
        return BUNDLED_WEIGHTS
    path = Path(choice)
    if not path.is_file():
        raise BabyAIError(f"There is no weights file {path}; use --weights bundled, --weights babyai or another path.")
    return path


def fetch(filename: str) -> Path:
    """A file of the published repository: from the cache if it is there and intact, or else downloaded.

    Raises:
        BabyAIError: it is neither in the cache nor to be had; the sentence says what to do.
    """
    path = _cached(filename)
    if path is None or _discard_if_damaged(path):
        path = _downloaded(filename)
        if _discard_if_damaged(path):
            raise BabyAIError(f"{filename} arrived damaged from {_origin()}; try again, or {_remedy(filename)}.")
    return path


def _cached(filename: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(HUB_REPO, filename)
    return Path(path) if isinstance(path, str) else None


def _downloaded(filename: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    # The library's errors come from three transports, and one of them raises bare RuntimeErrors.
    try:
        # Without a server this fails at once, where hf_hub_download goes on trying for half a minute.
        get_hf_file_metadata(hf_hub_url(HUB_REPO, filename))
        return Path(hf_hub_download(HUB_REPO, filename))
    except Exception as error:
        raise BabyAIError(f"{filename} {_reason(error)}, or {_remedy(filename)}.") from error


def _reason(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled, RemoteEntryNotFoundError, RepositoryNotFoundError

    if isinstance(error, OfflineModeIsEnabled):
        return f"is not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to download it: unset it"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"is not among the files of {_origin()}: check HF_ENDPOINT"
    if isinstance(error, RepositoryNotFoundError):
        return f"cannot be downloaded, since {_origin()} is missing or not open to you: log in with `hf auth login`"
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return f"does not fit on the disk of {constants.HF_HUB_CACHE}: free some space or set HF_HOME to another folder"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"cannot be saved in {constants.HF_HUB_CACHE}: set HF_HOME to a folder that you may write to"
    first_line = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return f"could not be downloaded from {_origin()} ({first_line}): try again with a working connection"


def _origin() -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{HUB_REPO}"


def _remedy(filename: str) -> str:
    return _REMEDIES.get(filename, _OTHER_REMEDY)


def _discard_if_damaged(path: Path) -> bool:
    """Delete a cached file whose content is not what its name says; True if it was so.

    The cache links each file to a blob named by its checksum: SHA-256 for large files, git's SHA-1 for small ones.
    """
    if not path.is_symlink():
        return False
    blob = path.parent / os.readlink(path)
    with blob.open("rb") as stream:
        if len(blob.name) == 64:
            intact = hashlib.file_digest(stream, "sha256").hexdigest() == blob.name
        elif len(blob.name) == 40:
            content = stream.read()
            intact = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == blob.name
        else:
            intact = True
    if not intact:
        blob.unlink()
    return not intact
