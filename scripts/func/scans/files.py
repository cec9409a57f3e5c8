"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from func.errors import BabyAIError

_WRITE_FAULTS = {
    errno.ENOSPC: "the disk is full; free some space and run again.",
    errno.EDQUOT: "the disk quota is used up; free some space and run again.",
    errno.EACCES: "the folder is not writable; choose another one.",
    errno.EPERM: "the folder is not writable; choose another one.",
    errno.EROFS: "the disk is read-only; choose another one.",
    errno.ENOENT: "its folder was removed meanwhile; run again.",
}

_NAME = 50  # characters of a name that its temporary one keeps; a file system takes 255 bytes


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A hidden path beside the final one; moved to ``path`` once the block has written it whole.

    Whatever interrupts the block, nothing partial is left under the final name. Temporary files of processes that were
    killed go when the next file is written beside them. The folder of ``path`` is made if need be, and the temporary
    name ends as the final one does, since nibabel goes by that.

    Raises:
        BabyAIError: the file could not be written (disk full, no permission, folder gone).
    """
    path = Path(path)
    own = f".part-{socket.gethostname()}-"
    # Named before it is there: a stop at any moment then finds what to remove.
    temporary = path.parent / f"{own}{os.getpid()}-{secrets.token_hex(4)}-{path.name[-_NAME:]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f"{own}*"):
            if not _is_running(leftover.name.removeprefix(own).partition("-")[0]):
                with contextlib.suppress(OSError):  # another user's, or a folder: it stays
                    leftover.unlink()
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        fault = _WRITE_FAULTS.get(error.errno, f"{error.strerror or error}; check the output folder.")
        raise BabyAIError(f"{path} could not be written: {fault}") from error


def check_writable(folder: Path) -> None:
    """Refuse a folder that no result could be written to, before any work is done; it is made if need be.

    Raises:
        BabyAIError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BabyAIError(f"The output folder {folder} is not writable ({error.strerror}); choose another.") from error


def _is_running(process: str) -> bool:
    """Whether a process of this host is alive; on Windows, where asking would end it, always."""
    if os.name != "posix" or not process.isdigit():
        return True
    try:
        os.kill(int(process), 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def is_dicom_file(path: Path) -> bool:
    """Whether a file bears the mark of DICOM (part 10, section 7.1); one that cannot be read does not."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def save_json(path: str | Path, content: dict) -> None:
    """Write a JSON file atomically.

    Raises:
        BabyAIError: the file could not be written.
    """
    with atomic(path) as temporary:
        write_json(temporary, content)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file, indented and in UTF-8; not atomic by itself."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
