"""The published files on the Hugging Face Hub, and what to do when they cannot be had.

Cache, locks, progress and the resuming of broken transfers are `huggingface_hub`'s own, and so are the environment
variables `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE`. A file already in the cache is used without asking the Hub.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from func.errors import BabyAIError

REPO_ROOT = Path(__file__).resolve().parents[3]
BUNDLED_WEIGHTS = REPO_ROOT / "weights" / "compact.pth"

HUB_REPO = "almalennartsson/baby-ai"
# A branch, tag or commit of the repository; the commit that a file came from is told by `commit_of`.
HUB_REVISION = os.environ.get("BABYAI_HUB_REVISION") or "main"
WEIGHTS_FILE = "pretrained_weights.pth"
ATLAS_FILE = "infant_atlas.nii.gz"
DEMO_T1_FILE = "demo_t1w_input.nii.gz"
DEMO_T2_FILE = "demo_t2w_input.nii.gz"

_REMEDIES = {
    WEIGHTS_FILE: "use --weights bundled, or give --weights the path of a copy",
    ATLAS_FILE: "give --atlas the path of a copy",
}


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
    path = Path(os.path.expanduser(choice))
    if not os.path.isfile(path):
        raise BabyAIError(f"There is no weights file {path}; use --weights bundled, --weights babyai or another path.")
    return path


def fetch(filename: str, revision: str = HUB_REVISION) -> Path:
    """A file of the published repository: from the cache if it is there and intact, or else downloaded.

    Raises:
        BabyAIError: it is neither in the cache nor to be had; the sentence says what to do.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    cached = try_to_load_from_cache(HUB_REPO, filename, revision=revision)
    damaged = isinstance(cached, str) and not _is_intact(Path(cached))
    if isinstance(cached, str) and not damaged:
        return Path(cached)
    origin, remedy = f"{constants.ENDPOINT}/{HUB_REPO}", _REMEDIES.get(filename, "go on without it")
    try:
        # Without a server this fails at once, where hf_hub_download goes on trying for half a minute.
        get_hf_file_metadata(hf_hub_url(HUB_REPO, filename, revision=revision))
        path = Path(hf_hub_download(HUB_REPO, filename, revision=revision, force_download=damaged))
    except (RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise BabyAIError(
            f"{filename} is not to be found at {origin}, revision {revision}, or not open to you; check HF_ENDPOINT "
            f"and BABYAI_HUB_REVISION, log in with `hf auth login`, or {remedy}."
        ) from error
    except Exception as error:  # of three transports, each with its own kinds
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise BabyAIError(
            f"{filename} could not be downloaded from {origin} into {constants.HF_HUB_CACHE} ({reason}); "
            f"try again (HF_HOME chooses another folder), or {remedy}."
        ) from error
    if not _is_intact(path):
        raise BabyAIError(f"{filename} arrived damaged from {origin}; try again, or {remedy}.")
    return path


def commit_of(path: Path) -> str | None:
    """The commit of the published repository that a file from the Hub's cache belongs to; None for any other file."""
    return path.parent.name if path.parent.parent.name == "snapshots" else None


def _is_intact(path: Path) -> bool:
    """Whether a cached file is what its name says; one that is not is deleted, so that it is downloaded again.

    The cache links each file to a blob named by its checksum: SHA-256 for large files, git's SHA-1 for small ones.
    """
    if not path.is_symlink():
        return True
    blob = path.resolve()
    content = blob.read_bytes() if len(blob.name) == 40 else b""
    with blob.open("rb") as stream:
        checksums = {
            64: lambda: hashlib.file_digest(stream, "sha256").hexdigest(),
            40: lambda: hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
        }
        intact = checksums.get(len(blob.name), lambda: blob.name)() == blob.name
    if not intact:
        blob.unlink()
    return intact
