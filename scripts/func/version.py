"""The version of BABY-AI: what ``--version`` prints, and every sidecar and report says."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from pathlib import Path

VERSION = "2026.11"  # as in CITATION.cff and docs/changes.md
REPO_ROOT = Path(__file__).resolve().parents[2]


@lru_cache
def own_version() -> str:
    """``2026.11``, in a git checkout with its commit: ``2026.11+1a2b3c4``, ``-dirty`` where tracked files differ."""
    if not (REPO_ROOT / ".git").exists():  # git would name the commit of any checkout that this folder lies in
        return VERSION
    describing = ["git", "-C", str(REPO_ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        commit = subprocess.run(describing, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return f"{VERSION}+{commit}" if commit else VERSION
