"""The repository as a whole: one address that all places follow, dependencies that agree."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from set_repository import address, repository, set_repository, texts  # noqa: E402

FORK = "ada-l/course.2"
ANY = r"[\w.-]+"

# Where an address must be ours, whoever owns it at present. A chapter may link to repositories of others, a
# set-up cell, a badge or the instructions may not.
INSTALL = re.compile(rf"seglearn-course @ git\+https://github\.com/({ANY}/{ANY})")
CLONE = re.compile(rf"git clone \S*github\.com[/:]({ANY}/{ANY})")
OURS = {
    "_config.yml": address(ANY, ANY),
    "pyproject.toml": address(ANY, ANY),
    "README.md": re.compile(
        rf"(?:colab\.research\.google\.com/github|mybinder\.org/v2/gh)/({ANY}/{ANY})"
        rf"|https://github\.com/({ANY}/{ANY})/actions|//{ANY}\.github\.io/{ANY}",
    ),
}


def slug(found: re.Match[str]) -> str:
    """The "owner/name" that a match names, be it on GitHub or on Pages."""
    pages = re.search(rf"//({ANY})\.github\.io/({ANY})", found[0])
    named = f"{pages[1]}/{pages[2]}" if pages else next(group for group in found.groups() if group)
    return named.removesuffix(".git").rstrip(".")


def disagreements(root: Path) -> list[str]:
    """Every place under `root` that names another repository than `_config.yml` does."""
    ours = repository(root)
    wrong = []
    for path in texts(root):
        name, text = str(path.relative_to(root)), path.read_text("utf-8")
        for pattern in (INSTALL, CLONE, *([OURS[name]] if name in OURS else [])):
            wrong += [f"{name}: {m[0]}" for m in pattern.finditer(text) if slug(m).lower() != ours.lower()]
    return wrong


def copy_of_project(folder: Path) -> Path:
    """The texts of the project, and a notebook with a set-up cell of its own, in `folder`."""
    for path in texts(ROOT):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    ours = repository(folder)
    (folder / "book/extra.ipynb").write_text(
        '{"cells": [{"source": ["%pip install \\"seglearn-course @ git+https://github.com/' + ours + '\\"\\n"]}]}'
    )
    return folder


def test_all_places_agree() -> None:
    assert disagreements(ROOT) == []


def test_every_kind_of_place_is_there() -> None:
    """Guards the test above: with no badge in the README it would have nothing to compare."""
    for name, pattern in OURS.items():
        assert pattern.search((ROOT / name).read_text("utf-8")), f"{name} names no repository"
    for chapter in ROOT.glob("book/**/*.ipynb"):
        if "_build" not in chapter.parts and ".ipynb_checkpoints" not in chapter.parts:
            assert INSTALL.search(chapter.read_text("utf-8")), f"{chapter} has no set-up cell that installs the package"


def test_tool_changes_all_places_and_nothing_else(tmp_path: Path) -> None:
    root, old = copy_of_project(tmp_path), repository(ROOT)
    before = {path: path.read_bytes() for path in texts(root)}

    changed = set_repository(FORK, root)

    assert repository(root) == FORK
    assert {
        root / "_config.yml",
        root / "pyproject.toml",
        root / "README.md",
        root / "book/extra.ipynb",
    } <= set(changed)
    assert disagreements(root) == []
    left = address(*map(re.escape, old.split("/")))
    assert [path for path in texts(root) if left.search(path.read_text("utf-8"))] == []
    for path, old_bytes in before.items():
        new_lines, old_lines = path.read_bytes().splitlines(), old_bytes.splitlines()
        assert len(new_lines) == len(old_lines)
        for new, line in zip(new_lines, old_lines, strict=True):
            assert new == line or left.search(line.decode()), f"{path}: changed a line without an address: {line!r}"
            assert new.count(b"seglearn-course @") == line.count(b"seglearn-course @")  # the package keeps its name

    set_repository(old, root)
    assert {path: path.read_bytes() for path in texts(root)} == before


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("_config.yml", "https://github.com/{}"),
        ("_config.yml", "pages"),
        ("pyproject.toml", "https://github.com/{}"),
        ("pyproject.toml", "pages"),
        ("README.md", "https://colab.research.google.com/github/{}"),
        ("README.md", "https://mybinder.org/v2/gh/{}"),
        ("README.md", "https://github.com/{}/actions"),
        ("README.md", "git clone https://github.com/{}"),
        ("README.md", "pages"),
        ("CONTRIBUTING.md", "git clone https://github.com/{}"),
        ("book/extra.ipynb", "git+https://github.com/{}"),
    ],
)
def test_a_missed_place_is_noticed(tmp_path: Path, name: str, place: str) -> None:
    """Put the old address back at one single place: the check must see it, wherever it is."""

    def spelled(repo: str) -> str:
        owner, project = repo.split("/")
        return f"https://{owner}.github.io/{project}" if place == "pages" else place.format(repo)

    root, old = copy_of_project(tmp_path), repository(ROOT)
    set_repository(FORK, root)
    path = root / name
    text = path.read_text("utf-8")
    assert spelled(FORK) in text, f"{name} has no {place}"
    path.write_text(text.replace(spelled(FORK), spelled(old), 1), "utf-8")
    assert disagreements(root) != []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("https://github.com/a/b", True),
        ("git@github.com:a/b.git", True),
        ("see https://github.com/a/b.", True),
        ("https://a.github.io/b/", True),
        ("https://github.com/a/b-2", False),
        ("https://github.com/a/b.io", False),
        ("https://github.com/a/c", False),
        ("https://xa.github.io/b/", False),
        ("seglearn-course", False),
    ],
)
def test_address(text: str, found: bool) -> None:
    assert bool(address("a", "b").search(text)) is found


@pytest.mark.parametrize("wrong", ["name", "https://github.com/a/b", "a/b/c", "a b/c", ""])
def test_wrong_name_is_refused_in_one_sentence(wrong: str) -> None:
    run = subprocess.run([sys.executable, ROOT / "tools/set_repository.py", wrong], capture_output=True, text=True)
    assert run.returncode == 1
    assert "OWNER/NAME" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_tool_prints_the_setting() -> None:
    run = subprocess.run([sys.executable, ROOT / "tools/set_repository.py"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == repository(ROOT)


# ---- the conda environments name what pyproject.toml asks for


CONDA_NAMES = {"torch": {"pytorch", "pytorch-cpu"}}  # what conda-forge calls differently


def core_dependencies() -> set[str]:
    """The names in pyproject.toml, without versions and extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return {package_name(requirement) for requirement in project["dependencies"]}


def package_name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def missing_from(environment: dict[str, Any]) -> set[str]:
    """The core dependencies that a conda environment names neither for conda nor for pip."""
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = [line for entry in environment["dependencies"] if isinstance(entry, dict) for line in entry["pip"]]
    named = {package_name(entry) for entry in (*conda, *pip)}
    return {name for name in core_dependencies() if not CONDA_NAMES.get(name, {name}) & named}


@pytest.mark.parametrize("name", ["environment.yml", "binder/environment.yml"])
def test_conda_environment_names_every_dependency(name: str) -> None:
    environment = yaml.safe_load((ROOT / name).read_text("utf-8"))
    assert missing_from(environment) == set()
    environment["dependencies"] = [e for e in environment["dependencies"] if "torch" not in str(e)]
    assert missing_from(environment) >= {"torch", "torchvision"}


def test_dependencies_have_lower_bounds_only() -> None:
    """An upper bound on numpy or torch breaks a course on Colab; Jupyter Book 2 is another program."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    every = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    bounded = [r for r in every if re.search(r"<|==|~=|!=", r.split(";")[0])]
    assert bounded == ["jupyter-book>=1.0.4,<2"]
