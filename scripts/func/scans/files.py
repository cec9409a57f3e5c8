"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from func.errors import BabyAIError


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it once the block has written it whole and the disk holds it.

    Whatever interrupts the block, nothing partial is left under the final name; leftovers of killed processes are
    removed when the same file is written again. The folder is made if need be.

    Raises:
        BabyAIError: the file could not be written (disk full, no permission, folder gone).
    """
    path = Path(path)
    # The whole file name stays at the end, since nibabel goes by the extension.
    temporary = path.with_name(f".part-{os.getpid()}-{socket.gethostname()}-{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise BabyAIError(f"{path} could not be written: {_write_fault(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_fault(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and run again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "the folder is not writable; choose another one."
    if error.errno == errno.ENOENT:
        return "its folder was removed meanwhile; run again."
    return f"{error.strerror or error}; check the output folder."


def _remove_leftovers(path: Path) -> None:
    """Delete temporaries of the same file whose process, on this host, is no more."""
    for leftover in path.parent.glob(f".part-*-{_glob_escaped(socket.gethostname())}-*-{_glob_escaped(path.name)}"):
        if not _is_alive(leftover.name.split("-")[1]):
            leftover.unlink(missing_ok=True)


def _is_alive(process: str) -> bool:
    if os.name != "posix" or not process.isdigit():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _glob_escaped(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


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
