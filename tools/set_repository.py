"""Point every badge, set-up cell and link of the course at one GitHub repository.

    python tools/set_repository.py               # print the repository that is set
    python tools/set_repository.py OWNER/NAME    # change it everywhere

The setting is `repository.url` in `_config.yml`; all other places follow it. After a fork, run this once and
commit, or leave it to the workflow that publishes the book: it does so for the fork it runs in.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".ipynb", ".md", ".py", ".toml", ".yaml", ".yml"}
NOT_OURS = {"_build", "build", "dist", "data", "runs"}  # at the top: built, downloaded or trained


def repository(root: Path = ROOT) -> str:
    """Return the setting, "OWNER/NAME".

    Raises:
        ValueError: `_config.yml` names no repository on GitHub.
    """
    found = re.search(
        r"^  url: https://github\.com/([\w.-]+/[\w.-]+)\s*$", (root / "_config.yml").read_text("utf-8"), re.M
    )
    if not found:
        raise ValueError(
            "_config.yml holds no line `  url: https://github.com/OWNER/NAME`: add it under `repository:`."
        )
    return found[1]


def address(owner: str, name: str) -> re.Pattern[str]:
    """The ways in which text spells a repository's address: on GitHub, Colab, Binder and Pages.

    `owner` and `name` are regular expressions; the match has one of the groups `slug` and `pages`.
    """
    colab, binder = r"colab\.research\.google\.com/github/", r"mybinder\.org/v2/gh/"
    github = rf"(?:github\.com[/:]|raw\.githubusercontent\.com/|{colab}|{binder})(?P<slug>{owner}/{name})"
    pages = rf"//(?P<pages>{owner}\.github\.io/{name})"
    end = r"(?![\w-]|\.(?!git\b)\w)"  # "name-2" and "name.io" are other repositories, "name.git" is not
    return re.compile(rf"(?:{github}|{pages}){end}", re.I)


def texts(root: Path) -> Iterator[Path]:
    """The project's own text files, hidden folders and whatever is built left out."""
    for folder, folders, names in os.walk(root):
        at_top = Path(folder) == root
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not (at_top and f in NOT_OURS))
        yield from (Path(folder, name) for name in sorted(names) if Path(name).suffix in SUFFIXES)


def set_repository(slug: str, root: Path = ROOT) -> list[Path]:
    """Write `slug`, "OWNER/NAME", wherever the present address stands, and return the files that changed.

    Raises:
        ValueError: `slug` is no "OWNER/NAME".
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*/[\w.-]+", slug):
        raise ValueError(f"{slug!r} is no repository: write it as OWNER/NAME, for example ada/segmentation-course.")
    pattern = address(*map(re.escape, repository(root).split("/")))
    owner, name = slug.split("/")

    def replace(match: re.Match[str]) -> str:
        old, new = (match["slug"], slug) if match["slug"] else (match["pages"], f"{owner}.github.io/{name}")
        return match[0].replace(old, new)

    changed = []
    for path in texts(root):
        before = path.read_bytes().decode("utf-8")  # bytes: line ends stay as they are
        after = pattern.sub(replace, before)
        if after != before:
            path.write_bytes(after.encode("utf-8"))
            changed.append(path)
    return changed


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "slug", metavar="OWNER/NAME", nargs="?", help="the repository to point at; without it, print it"
    )
    slug = parser.parse_args().slug
    try:
        if slug is None:
            print(repository())
        else:
            for path in set_repository(slug):
                print(path.relative_to(ROOT))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
