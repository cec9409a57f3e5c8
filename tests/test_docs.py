"""The documentation: files and links that are there, and every message that a user can meet explained."""

import ast
import re

import pytest

from conftest import REPO_ROOT

PAGES = [REPO_ROOT / "README.md", REPO_ROOT / "weights" / "README.md", *sorted((REPO_ROOT / "docs").glob("*.md"))]
ANY = "\0"  # stands for names and numbers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    links = [page.parent / link.partition("#")[0] for link in re.findall(r"\]\(([^)#]+[^)]*)\)", text)]
    links = [link for link in links if ":/" not in str(link)]
    named = [REPO_ROOT / "scripts" / name for name in re.findall(r"`(func/[\w/]+(?:\.py|/))`", text)]
    named += [REPO_ROOT / name for name in re.findall(r"(scripts/[\w/]+\.py|slurm/\w+\.sbatch)", text)]
    assert not [path for path in [*links, *named] if not path.exists()]


def test_the_readme_is_short():
    assert len(PAGES[0].read_text().splitlines()) < 150


def message_of(node: ast.AST) -> str:
    """The text of a message in the code."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(message_of, node.values))
    if isinstance(node, ast.BinOp):
        return message_of(node.left) + message_of(node.right)
    if isinstance(node, ast.IfExp):
        return f"{message_of(node.body)} {message_of(node.orelse)}"
    return ANY


def messages() -> set[str]:
    """What ``warn`` and ``BabyAIError`` are called with, and the warnings on the quality of the input."""
    found = set()
    for path in (REPO_ROOT / "scripts").rglob("*.py"):
        if path.parent.name == "tools":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in ("warn", "BabyAIError") or (name == "append" and path.name == "quality.py"):
                    found.add(message_of(node.args[0]))
    # What holds no words of its own is put together elsewhere.
    return {message for message in found if len(re.sub(r"[^a-z]", "", message)) > 10}


def stems() -> list[str]:
    """The words in backquotes in the first column of the page's tables."""
    lines = (REPO_ROOT / "docs" / "troubleshooting.md").read_text().splitlines()
    firsts = [line.split("|")[1] for line in lines if line.startswith("| `")]
    return [stem.replace("...", ANY) for first in firsts for stem in re.findall(r"`([^`]+)`", first)]


def test_every_message_is_explained():
    known = stems()
    unknown = [message.replace(ANY, "...") for message in messages() if not any(stem in message for stem in known)]
    assert not unknown, "\n".join(unknown)


def test_what_is_explained_is_said_somewhere():
    code = "\n".join(path.read_text() for path in (REPO_ROOT / "scripts").rglob("*.py"))
    joined = re.sub(r'"\s+f?"', "", code)  # strings that go on in the next line
    patterns = [re.escape(stem).replace(re.escape(ANY), r"\{.*?\}") for stem in stems()]
    unsaid = [pattern for pattern in patterns if not re.search(pattern, joined)]
    assert not unsaid, "\n".join(unsaid)
