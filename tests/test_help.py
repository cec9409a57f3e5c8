"""What a user asks of every script first: --help and --version."""

import re
import shutil
import subprocess

import pytest

import evaluate
import inference
import preprocessing
import synthesize_anisotropic
import training
from conftest import REPO_ROOT
from func import version
from func.reports.results import versions

SCRIPTS = [preprocessing, synthesize_anisotropic, training, inference, evaluate]


def told(script, option, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        script.parse_arguments([option])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_help_fits_a_screen_groups_its_options_and_shows_examples(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = told(script, "--help", capsys).splitlines()
    assert len(lines) <= 100
    ungrouped = lines[lines.index("options:") + 1 :]
    ungrouped = ungrouped[: ungrouped.index("")]
    assert [line.split()[0] for line in ungrouped] == ["-h,", "--version"]
    assert len([line for line in lines if line.startswith("    ") and f"scripts/{script.__name__}.py --" in line]) >= 2


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_every_script_tells_the_version_that_sidecars_tell(script, capsys):
    assert told(script, "--version", capsys) == f"BABY-AI {versions()['BABY-AI']}\n"


def test_the_version_is_that_of_the_citation_and_of_the_changes():
    assert f"version: {version.VERSION!r}".replace("'", '"') in (REPO_ROOT / "CITATION.cff").read_text().splitlines()
    headings = re.findall(r"^## (\S+)", (REPO_ROOT / "docs" / "changes.md").read_text(), re.MULTILINE)
    assert headings[0] == version.VERSION


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkout of git around the folder that the repository is taken to be."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    commit = ["git", "-c", "user.name=x", "-c", "user.email=x", "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(commit, cwd=tmp_path, check=True)
    version.own_version.cache_clear()
    yield tmp_path
    version.own_version.cache_clear()


def test_a_checkout_tells_its_commit(folder, monkeypatch):
    monkeypatch.setattr(version, "REPO_ROOT", folder)
    assert re.fullmatch(rf"{version.VERSION}\+[0-9a-f]{{7,}}", version.own_version())


def test_a_copy_inside_another_checkout_does_not_tell_that_ones_commit(folder, monkeypatch):
    monkeypatch.setattr(version, "REPO_ROOT", folder / "copy")
    (folder / "copy").mkdir()
    assert version.own_version() == version.VERSION
