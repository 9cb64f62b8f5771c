"""The papers of the course: what each is, whom it builds on, what it scored. Read from one file, drawn for chapters.

`papers.yaml` beside this file holds every fact with its source. `card` and `scores` show one paper, `sheet` and
`lineage` all of them, as HTML that needs no kernel and fits a phone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import yaml
from IPython.display import HTML

from seglearn.errors import InputError

FILE = Path(__file__).with_name("papers.yaml")
BOOK = Path(__file__).resolve().parent.parent / "book"  # not there where only the package is installed
FAMILIES = {  # line of thought: its colour
    "before": "#8c8c8c",
    "backbone": "#8c8c8c",
    "fully convolutional": "#d1495b",
    "decoder": "#3a8f5c",
    "dilation": "#4878a8",
    "crf": "#b07aa1",
}
EXTRA = ("none", "COCO", "JFT-300M", "other", "unknown")
LABELS = {
    "none": "",
    "COCO": " with COCO",
    "JFT-300M": " with JFT-300M",
    "other": " with more",
    "unknown": ", data unknown",
}
TRUST = ("read", "second-hand")


@dataclass(frozen=True)
class Score:
    """One number that a paper, or a report about it, gives.

    Attributes:
        model: which of the paper's models.
        value: in percent for mIoU, IoU and accuracies.
        measure: such as "mIoU".
        benchmark: such as "VOC 2012".
        split: such as "test"; with size or number of images where these matter.
        training: what it was trained on.
        extra: labelled data beyond the benchmark and SBD, one of `EXTRA`.
        at_test: what was added when testing, such as a CRF.
        source: key of the paper, or address, where the number stands.
        where: place in the source.
        trust: "read" there, or "second-hand".
    """

    model: str
    value: float
    measure: str
    benchmark: str
    split: str
    training: str
    extra: str
    at_test: str
    source: str
    where: str
    trust: str


@dataclass(frozen=True)
class Paper:
    """A paper of the course.

    Attributes:
        key: its name in the file; a network's module in `seglearn.models` has the same.
        name: its name in figures and tables.
        family: line of thought, one of `FAMILIES`.
        title: the paper's title.
        authors: in its order.
        date: when it was first public, "YYYY", "YYYY-MM" or "YYYY-MM-DD".
        arxiv: identifier on arXiv, None where it is not there.
        venue: where it was published.
        bib: keys in the bibliography.
        code: the authors' code as `url` and `made_with`, None where we know of none.
        chapter: path of its chapter in the book, without suffix; it need not exist yet.
        contributions: a phrase each.
        builds_on: key of an earlier work -> what was added or changed.
        backbone: what the network is made of, and so on for the columns of the comparison sheet.
        stride: pixels of the image for one cell of its smallest map.
        logits_stride: pixels for one cell of class scores, before the last interpolation.
        skips: what goes around the coarse maps.
        context: how it sees far.
        decoder: how it comes back to pixels.
        postprocessing: what follows the network.
        scores: what it scored.
    """

    key: str
    name: str
    family: str
    title: str
    authors: tuple[str, ...]
    date: str
    arxiv: str | None
    venue: str
    bib: tuple[str, ...]
    code: dict[str, str] | None
    chapter: str
    contributions: tuple[str, ...]
    builds_on: dict[str, str]
    backbone: str
    stride: str
    logits_stride: str
    skips: str
    context: str
    decoder: str
    postprocessing: str
    scores: tuple[Score, ...]

    @property
    def year(self) -> float:
        """Its date as a number: 2015.5 is the middle of 2015."""
        numbers = [int(part) for part in self.date.split("-")]
        year, month, day = numbers + [7, 1][len(numbers) - 1 :] if len(numbers) < 3 else numbers
        return year + (month - 1) / 12 + (day - 1) / 365

    def best(self, extra: Iterable[str] = EXTRA, benchmark: str = "VOC 2012", split: str = "test") -> Score | None:
        """Its highest mIoU with these kinds of extra data, None if it has none."""
        found = [s for s in self.scores if (s.benchmark, s.split, s.measure) == (benchmark, split, "mIoU")]
        return max((s for s in found if s.extra in extra), key=lambda s: s.value, default=None)


@dataclass(frozen=True)
class Work:
    """Earlier work that the papers borrow from, without a chapter of its own: fields as in `Paper`."""

    key: str
    name: str
    family: str
    date: str
    bib: str
    builds_on: tuple[str, ...]


@dataclass(frozen=True)
class Library:
    """All of the file: the papers by their keys, oldest first, and the works that they borrow from."""

    papers: dict[str, Paper]
    background: dict[str, Work]

    def __getitem__(self, key: str) -> Paper:
        if key not in self.papers:
            nearest = get_close_matches(key, self.papers, n=1, cutoff=0)
            raise InputError(f"No paper {key!r}: did you mean {nearest[0]!r}? There are {', '.join(self.papers)}.")
        return self.papers[key]


@lru_cache
def read(file: Path = FILE) -> Library:
    """The file of papers.

    Raises:
        InputError: it is not there; an entry lacks a field or has one that is not known; a paper builds on nothing
            that is in the file.
    """
    if not file.exists():
        raise InputError(f"{file} is not there: run this in a clone of the course's repository, which has it.")
    content = yaml.safe_load(file.read_text("utf-8"))
    papers = [_paper(key, entry) for key, entry in content["papers"].items()]
    works = [_make(Work, f"background {key}", {"key": key, **entry}) for key, entry in content["background"].items()]
    library = Library({p.key: p for p in sorted(papers, key=lambda p: p.date)}, {work.key: work for work in works})
    known = {**library.papers, **library.background}
    for entry in (*papers, *works):
        for earlier in entry.builds_on:
            if earlier not in known:
                raise InputError(f"{entry.key} builds on {earlier!r}, which is not in {file.name}: add it there.")
    return library


def _paper(key: str, entry: dict[str, Any]) -> Paper:
    scores = [_make(Score, f"{key}, score {i + 1}", score) for i, score in enumerate(entry.get("scores", []))]
    return _make(Paper, key, {"key": key, **entry, "scores": scores})


def _make(kind: Any, name: str, entry: dict[str, Any]) -> Any:
    expected = {field.name for field in fields(kind)}
    for words, found in (("lacks", expected - entry.keys()), ("has the unknown", entry.keys() - expected)):
        if found:
            raise InputError(f"papers.yaml: {name} {words} {', '.join(sorted(found))}.")
    for field, allowed in (("family", FAMILIES), ("extra", EXTRA), ("trust", TRUST)):
        if field in entry and entry[field] not in allowed:
            raise InputError(f"papers.yaml: {name} has {field} {entry[field]!r}: use one of {', '.join(allowed)}.")
    return kind(**{field: tuple(value) if isinstance(value, list) else value for field, value in entry.items()})


# ---- for chapters

STYLE = """<style>
.papers {overflow-x: auto; margin: .5rem 0}
.papers table {border-collapse: collapse; width: 100%; font-size: .85rem; line-height: 1.35; margin: 0}
.papers th, .papers td {text-align: left !important; vertical-align: top; padding: .3rem .5rem;
 border-bottom: 1px solid rgba(128, 128, 128, .35); white-space: normal !important}
.papers td.number {font-variant-numeric: tabular-nums; white-space: nowrap !important}
.papers .wide th, .papers .wide td {padding: .3rem .25rem; font-size: .78rem; overflow-wrap: break-word}
.papers ul {margin: 0; padding-left: 1.1rem}
.papers svg a text {text-decoration: underline}
@media (max-width: 720px) {
 .papers .wide thead {display: none}
 .papers .wide tr {display: block; padding: .4rem 0; border-bottom: 2px solid rgba(128, 128, 128, .6)}
 .papers .wide td {display: block; border: 0; padding: .1rem .5rem; font-size: .85rem}
 .papers .wide td::before {content: attr(data-label) ": "; opacity: .75}
 .papers .wide td:first-child {font-weight: 600}
 .papers .wide td:first-child::before {content: ""}
}
</style>"""


def page(content: str) -> HTML:
    """HTML for a notebook, in the style of the tables here."""
    return HTML(f'<div class="papers">{STYLE}{content}</div>')


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Rows of HTML as a table whose rows become blocks on a narrow screen."""
    head = "".join(f"<th>{escape(title)}</th>" for title in header)
    body = ""
    for row in rows:
        cells = [
            f'<td data-label="{escape(title)}"{" class=number" * (column in numbers)}>{cell}</td>'
            for column, (title, cell) in enumerate(zip(header, row, strict=True))
        ]
        body += f"<tr>{''.join(cells)}</tr>\n"
    return f'<table class="wide"><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>'


def _link(address: str, text: str) -> str:
    return f'<a href="{escape(address)}">{escape(text)}</a>'


def _value(score: Score) -> str:
    """The number, with a question mark where it is second-hand."""
    text = f"{score.value:.6f}".rstrip("0") if score.value < 0.01 else f"{score.value:.4g}"
    text = f"{score.value:.1f}" if score.value == round(score.value, 1) and score.value >= 1 else text
    return text + " (?)" * (score.trust == "second-hand")


def _source(score: Score) -> str:
    if score.source.startswith("http"):
        return f"{_link(score.source, score.source.split('//')[1].removeprefix('www.'))}, {escape(score.where)}"
    paper = read()[score.source]
    names = [author.split()[-1] for author in paper.authors]
    year = "".join(filter(str.isdigit, paper.bib[0]))  # as in the bibliography
    name = f"{names[0] if len(names) == 1 else ' & '.join(names) if len(names) == 2 else names[0] + ' et al.'} {year}"
    named = _link(f"https://arxiv.org/abs/{paper.arxiv}", name) if paper.arxiv else escape(name)
    return f"{named}, {escape(score.where)}"


def card(key: str) -> HTML:
    """Title, authors, dates, authors' code and contributions of one paper, as a table of two columns.

    Raises:
        InputError: no such paper.
    """
    paper = read()[key]
    published = f"{paper.date}; {escape(paper.venue)}"
    if paper.arxiv:
        published = f"arXiv {_link(f'https://arxiv.org/abs/{paper.arxiv}', paper.arxiv)}, {published}"
    code = (
        f"{_link(paper.code['url'], paper.code['url'].split('//')[1])}, {paper.code['made_with']}" if paper.code else ""
    )
    rows = {
        "title": escape(paper.title),
        "authors": escape(", ".join(paper.authors)),
        "dates": published,
        "authors' code": code,
        "contributions": "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in paper.contributions) + "</ul>",
    }
    return page(
        "<table>" + "".join(f"<tr><th>{row}</th><td>{cell}</td></tr>" for row, cell in rows.items()) + "</table>"
    )


def scores(key: str, benchmark: str | None = None) -> HTML:
    """The scores that are known of one paper, each with split, training data, additions at test and source.

    A question mark follows what we know second-hand.

    Args:
        key: which paper.
        benchmark: only this one, such as "VOC 2012".

    Raises:
        InputError: no such paper, or it has no score on this benchmark.
    """
    paper = read()[key]
    found = [score for score in paper.scores if benchmark in (None, score.benchmark)]
    if not found:
        known = ", ".join(dict.fromkeys(score.benchmark for score in paper.scores))
        raise InputError(f"{paper.name} has no score on {benchmark!r}: there are scores on {known}.")
    header = ("model", "score", "benchmark", "trained on", "added at test", "source")
    rows = [
        (
            escape(score.model),
            f"{_value(score)} {escape(score.measure)}",
            f"{escape(score.benchmark)}, {escape(score.split)}",
            escape(score.training),
            escape(score.at_test),
            _source(score),
        )
        for score in found
    ]
    return page(table(header, rows, numbers=(1,)))


def sheet() -> HTML:
    """All papers side by side: what each network is made of, and its best mIoU on the test set of VOC 2012."""
    header = ("paper", "VOC 2012", "backbone", "stride: map → scores", "skips", "context", "decoder", "afterwards")
    rows = []
    for paper in read().papers.values():
        voc = [f"{_value(best)}{LABELS[extra]}" for extra in EXTRA if (best := paper.best([extra]))]
        strides = f"{paper.stride} → {paper.logits_stride}"
        parts = (paper.backbone, strides, paper.skips, paper.context, paper.decoder, paper.postprocessing)
        name = f"{paper.name}, {paper.date[:4]}"
        rows.append([escape(name), "<br>".join(map(escape, voc)) or "no score", *map(escape, parts)])
    return page(table(header, rows))


COLUMNS = {"decoder": 0, "before": 1, "backbone": 1, "fully convolutional": 1, "crf": 1, "dilation": 2}
BOX, GUTTER, ROW = (98, 30), 26, 44  # width and height of a box, room left of it for lines, height of a row


def lineage(here: str = "models") -> HTML:
    """Who builds on whom: oldest at the top, one row a work, a click leads to its chapter.

    Names without a line under them have no chapter in the book, or none yet; dashed boxes are borrowed work.

    Args:
        here: folder of the page in the book that shows it, from which links start.
    """
    library = read()
    works: list[Paper | Work] = sorted((*library.papers.values(), *library.background.values()), key=lambda w: w.date)
    row = {work.key: index for index, work in enumerate(works)}
    left = {work.key: COLUMNS[work.family] * (BOX[0] + GUTTER) + GUTTER for work in works}
    lines = _lines(works, row, left)
    boxes = "".join(_box(work, left[work.key], row[work.key] * ROW + 4, here) for work in works)
    width, height = 3 * (BOX[0] + GUTTER) + 4, len(works) * ROW
    title = (
        f"Who builds on whom, from {works[0].date[:4]} to {works[-1].date[:4]}; the list below says the same in words"
    )
    return page(
        f'<svg viewBox="0 0 {width} {height}" role="group" aria-label="{title}" style="width: 100%; max-width: 560px; '
        f'display: block" font-family="sans-serif"><title>{title}</title>{lines}{boxes}</svg>{_OPEN_NOTEBOOK}'
    )


# In JupyterLab a page links to notebooks, not to their pages.
_OPEN_NOTEBOOK = """<script>
if (location.pathname.endsWith(".ipynb")) document.querySelectorAll(".papers svg a").forEach((a) =>
 a.setAttribute("href", a.getAttribute("href").replace(".html", ".ipynb")));
</script>"""


def _lanes(works: Sequence[Paper | Work], row: dict[str, int], target: int) -> dict[str, int]:
    """For each work with lines into a column, which lane left of the column they take: no two overlap in one."""
    ends: list[int] = []  # the last row of each lane so far
    lanes = {}
    for work in works:
        children = [w.key for w in works if work.key in w.builds_on and COLUMNS[w.family] == target]
        if children:
            free = [lane for lane, end in enumerate(ends) if end <= row[work.key]]
            lanes[work.key] = free[0] if free else len(ends)
            ends[lanes[work.key] : lanes[work.key] + 1] = [max(row[child] for child in children)]
    return lanes


def _lines(works: Sequence[Paper | Work], row: dict[str, int], left: dict[str, int]) -> str:
    """From each work to those that build on it: down from its box, along the gap below it, down a lane, right."""
    paths = ""
    for target in range(3):
        for key, lane in _lanes(works, row, target).items():
            x = target * (BOX[0] + GUTTER) + GUTTER - 7 - 6 * lane
            children = [w.key for w in works if key in w.builds_on and COLUMNS[w.family] == target]
            middles = [row[child] * ROW + 4 + BOX[1] / 2 for child in children]
            bottom = row[key] * ROW + 4 + BOX[1]
            color = FAMILIES[works[row[key]].family]
            paths += f'<path d="M{left[key] + BOX[0] / 2} {bottom}v5H{x}V{max(middles)}'
            paths += "".join(f"M{x} {y}H{left[child] - 5}" for child, y in zip(children, middles, strict=True))
            paths += f'" fill="none" stroke="{color}" stroke-width="1.6"/>'
            heads = "".join(f"M{left[child]} {y}l-6 -3v6z" for child, y in zip(children, middles, strict=True))
            paths += f'<path d="{heads}" fill="{color}"/>'
    return paths


def _box(work: Paper | Work, x: float, y: float, here: str) -> str:
    color, dashed = FAMILIES[work.family], ' stroke-dasharray="3 2"' * isinstance(work, Work)
    drawn = (
        f'<rect x="{x}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="4" fill="{color}" fill-opacity=".18" '
        f'stroke="{color}"{dashed}/><text x="{x + BOX[0] / 2}" y="{y + 13}" text-anchor="middle" font-size="12" '
        f'fill="currentColor">{escape(work.name)}</text><text x="{x + BOX[0] / 2}" y="{y + 25}" text-anchor="middle" '
        f'font-size="9.5" fill="currentColor" style="text-decoration: none">{work.date[:7]}</text>'
    )
    address = chapter_link(work, here) if isinstance(work, Paper) else None
    return f'<a href="{address}">{drawn}</a>' if address else f"<g>{drawn}</g>"


def chapter_link(paper: Paper, here: str = "models") -> str | None:
    """Address of a paper's chapter from a page in the folder `here` of the book; None while it is not written."""
    if not (BOOK / f"{paper.chapter}.ipynb").exists():
        return None
    folder, name = paper.chapter.split("/")
    return f"{name}.html" if folder == here else f"../{folder}/{name}.html"
