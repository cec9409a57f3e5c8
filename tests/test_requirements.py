"""The requirements: direct dependencies, pinned exactly, and none forgotten."""

import ast
import re
import sys

import pytest

from conftest import REPO_ROOT

SCRIPTS = REPO_ROOT / "scripts"
MODULE_OF = {"pillow": "PIL", "jinja2": "jinja2", "scikit-image": "skimage", "simpleitk": "SimpleITK"}
OPTIONAL = {"ipyniivue"}  # used where it is installed
# Not imported: run by the demo, and used by pandas for Markdown.
COMMANDS = {"jupyter", "nbclient", "tabulate"}


def pins(name: str) -> dict[str, str]:
    """Package to version, of a requirements file without those it includes."""
    lines = (REPO_ROOT / name).read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith(("#", "-r "))]
    return dict(line.split("==") for line in lines)


def imported(paths) -> set[str]:
    """Top-level modules that Python files import anywhere, the repository's own and the standard library's left out."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.split(".")[0])
    own = {"func"} | {
        path.stem
        for path in [*SCRIPTS.glob("*.py"), *(SCRIPTS / "tools").glob("*.py"), *(REPO_ROOT / "tests").glob("*.py")]
    }
    return found - own - sys.stdlib_module_names


@pytest.mark.parametrize("name", ["requirements.txt", "requirements_training.txt", "requirements_dev.txt"])
def test_every_requirement_is_pinned_exactly(name):
    assert pins(name)
    assert all(re.fullmatch(r"\d+(\.\d+)+", version) for version in pins(name).values())


def test_scripts_import_what_is_required_and_nothing_more():
    scripts = [*SCRIPTS.glob("*.py"), *(SCRIPTS / "func").rglob("*.py")]
    required = {MODULE_OF.get(name.lower(), name) for name in pins("requirements.txt")}
    training = {MODULE_OF.get(name.lower(), name) for name in pins("requirements_training.txt")}
    assert imported(set(scripts) - {SCRIPTS / "training.py"}) - OPTIONAL == required - COMMANDS
    assert imported([SCRIPTS / "training.py"]) - required <= training


def test_tests_import_nothing_else():
    every = [
        name
        for file in ("requirements.txt", "requirements_training.txt", "requirements_dev.txt")
        for name in pins(file)
    ]
    required = {MODULE_OF.get(name.lower(), name) for name in every}
    assert imported((REPO_ROOT / "tests").rglob("*.py")) <= required | OPTIONAL
