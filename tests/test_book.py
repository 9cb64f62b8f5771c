"""The book as a whole: every chapter has its skeleton, set-up cell, quiz, exercise and alternative text.

Each check is a function from a notebook to the list of what is wrong with it. It runs on every chapter, and
on a small notebook that was broken on purpose, in which it must find something.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from set_repository import repository, texts  # noqa: E402

Check = Callable[..., list[str]]  # of a notebook

SETUP = """\
import sys

if "google.colab" in sys.modules:
    %pip install -q --no-deps "seglearn-course @ git+https://github.com/{repository}" \
lightning-fabric lightning-utilities jsonargparse docstring-parser pooch safetensors jupyterquiz

import seglearn

if not getattr(seglearn, "__course__", False):
    raise ImportError(
        "This is the time-series package called seglearn: run `pip uninstall seglearn`, \
then install seglearn-course."
    )
seglearn.check_env(seconds={seconds})"""

HEADINGS = (
    "What you will learn",
    "What you need first",
    "The idea",
    "From scratch",
    "Does it work",
    "The paper's own numbers",  # where there is a paper: chapters on a model
    "Check yourself",
    "Exercises",
    "In short",
    "Further reading",
)
PAPER = HEADINGS[5]

DRAWS = re.compile(r"\bplt\.|\bplots\.(?!colorize\b|overlay\b)|\bslider\(")  # those two return arrays
ABSOLUTE = re.compile(r"""(?:^|[\s"'(=`])(?:~?/[\w.-]+/|[A-Za-z]:\\\w)""", re.M)
OTHER = "seglearn"  # as a distribution: the project about time series
OTHER_PACKAGE = re.compile(r"pip3? install[^\n#]*?[\s\"'=]seglearn(?![-\w])")
EXERCISE = re.compile(r"^(`{3,}|:{3,})\{exercise(?:-start)?\}.*?^:label: *(\S+)", re.M | re.S)
SOLUTION = re.compile(r"^(`{3,}|:{3,})\{solution(?:-start)?\} *(\S+)(.*?)^\1", re.M | re.S)


def checked(cell: NotebookNode) -> bool:
    """True where nbval compares the output of a code cell with what is committed."""
    return "NBVAL_CHECK_OUTPUT" in cell.source or "nbval-check-output" in cell.metadata.get("tags", [])


def markdown(notebook: NotebookNode) -> str:
    """All prose, in order."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def code(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def format_problems(notebook: NotebookNode) -> list[str]:
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [f"not a valid notebook: {str(error).splitlines()[0]}"]
    return []


def kernel_problems(notebook: NotebookNode) -> list[str]:
    name = notebook.metadata.get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"kernelspec is {name!r}, not 'python3': no one else has that kernel"]


def output_problems(notebook: NotebookNode) -> list[str]:
    problems = []
    for cell in code(notebook):
        if checked(cell):
            if not cell.outputs or cell.execution_count is None:
                problems.append(f"checked cell has no output or no execution count to compare with: {cell.source!r}")
            if any("image" in kind for output in cell.outputs for kind in output.get("data", {})):
                problems.append(f"a picture is committed as an output, and nbval compares no pictures: {cell.source!r}")
        elif cell.outputs or cell.execution_count is not None:
            problems.append(f"output is committed that nothing checks: {cell.source!r}")
    return problems


def setup_problems(notebook: NotebookNode) -> list[str]:
    if not code(notebook):
        return ["no code cell"]
    first = code(notebook)[0]
    seconds = re.search(r"check_env\(seconds=(\d+)\)\s*$", first.source)
    expected = SETUP.format(repository=repository(ROOT), seconds=seconds[1] if seconds else 30)
    problems = [] if first.source == expected else [f"the first code cell is not the set-up cell: {first.source!r}"]
    if "hide-input" not in first.metadata.get("tags", []):
        problems.append("the set-up cell is not tagged hide-input")
    return problems


def figure_problems(notebook: NotebookNode) -> list[str]:
    problems = []
    for cell in code(notebook):
        draws = DRAWS.search(cell.source) and "no-figure" not in cell.metadata.get("tags", [])
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if draws and not alt.strip() and not re.search(r"\balt=(?!\s*[\"']\s*[\"'])", cell.source):
            problems.append(f"a figure without alternative text: {cell.source!r}")
    return problems


def heading_problems(notebook: NotebookNode, is_model: bool = True) -> list[str]:
    found = [h.replace("’", "'").strip(" ?.") for h in re.findall(r"^## +(.+?)\s*$", markdown(notebook), re.M)]
    required = [h for h in HEADINGS if is_model or h != PAPER]
    problems = [f"no section {h!r}" for h in required if h not in found]
    order = [h for h in found if h in HEADINGS]
    if not problems and order != sorted(order, key=HEADINGS.index):
        problems.append(f"sections out of order: {order}")
    if len(re.findall(r"^# ", markdown(notebook), re.M)) != 1:
        problems.append("a chapter has one title")
    return problems


def quiz_problems(notebook: NotebookNode) -> list[str]:
    return [] if any("display_quiz(" in cell.source for cell in code(notebook)) else ["no quiz"]


def exercise_problems(notebook: NotebookNode) -> list[str]:
    text = markdown(notebook)
    hidden = {
        label for _, label, options in SOLUTION.findall(text) if re.search(r"^:class:.*\bdropdown\b", options, re.M)
    }
    labels = [label for _, label in EXERCISE.findall(text)]
    return [f"exercise {label} has no hidden solution" for label in labels if label not in hidden] + (
        [] if labels else ["no exercise"]
    )


def live_problems(notebook: NotebookNode) -> list[str]:
    problems = []
    for cell in code(notebook):
        if re.search(r"\blive\(", cell.source) and "remove-output" not in cell.metadata.get("tags", []):
            problems.append(f"controls without a kernel behind them would show on the page: {cell.source!r}")
        if re.search(r"\binteract(?:ive\w*)?\(", cell.source):
            problems.append(f"ipywidgets' Output can hang a notebook that is run by a program: {cell.source!r}")
    return problems


def path_problems(notebook: NotebookNode) -> list[str]:
    return [f"absolute path: {m[0]!r}" for cell in notebook.cells for m in ABSOLUTE.finditer(cell.source)]


def package_problems(notebook: NotebookNode) -> list[str]:
    return [f"installs another project: {m[0]!r}" for c in notebook.cells for m in OTHER_PACKAGE.finditer(c.source)]


CHECKS: list[Check] = [
    format_problems,
    kernel_problems,
    output_problems,
    setup_problems,
    figure_problems,
    heading_problems,
    quiz_problems,
    exercise_problems,
    live_problems,
    path_problems,
    package_problems,
]


def toc_files() -> list[str]:
    """Every page of the book in reading order, without its suffix."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


CHAPTERS = [f"{name}.ipynb" for name in toc_files() if (ROOT / f"{name}.ipynb").exists()]


def test_table_of_contents_and_files_agree() -> None:
    """A page that is listed and absent, or a notebook that nobody listed, is an error."""
    for name in toc_files():
        assert (ROOT / f"{name}.ipynb").exists() or (ROOT / f"{name}.md").exists(), f"{name} is listed and not there"
    notebooks = {path.relative_to(ROOT).as_posix() for path in texts(ROOT / "book") if path.suffix == ".ipynb"}
    assert notebooks == set(CHAPTERS)
    assert CHAPTERS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter(chapter: str, check: Check) -> None:
    notebook = nbformat.read(ROOT / chapter, as_version=nbformat.NO_CONVERT)
    is_model = chapter.startswith("book/models/") and chapter != "book/models/overview.ipynb"
    options = {"is_model": is_model} if check is heading_problems else {}
    assert check(notebook, **options) == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_readme_opens_chapter_on_colab(chapter: str) -> None:
    link = f"https://colab.research.google.com/github/{repository(ROOT)}/blob/main/{chapter})"
    assert link in (ROOT / "README.md").read_text("utf-8")


def test_nothing_installs_the_other_package() -> None:
    found = [path for path in texts(ROOT) if OTHER_PACKAGE.search(path.read_text("utf-8"))]
    assert found == []


# ---- the checks themselves, on a small notebook that is right and on others that are each wrong in one thing


def sound_notebook() -> NotebookNode:
    """A chapter in which no check finds anything."""
    sections = [new_markdown_cell(f"## {heading}") for heading in HEADINGS]
    exercise = "```{exercise} Add\n:label: ex-add\n\nOne and one?\n```"
    solution = "```{solution} ex-add\n:class: dropdown\n\nTwo.\n```"
    return new_notebook(
        cells=[
            new_markdown_cell("# A chapter\n\nSee https://example.org/a/b and either/or, $1/2$."),
            new_code_cell(SETUP.format(repository=repository(ROOT), seconds=12), metadata={"tags": ["hide-input"]}),
            *sections[:4],
            new_code_cell(
                "1 + 1  # NBVAL_CHECK_OUTPUT",
                execution_count=1,
                outputs=[new_output("execute_result", data={"text/plain": "2"}, execution_count=1)],
            ),
            new_code_cell("plt.plot([1, 2])", metadata={"mystnb": {"image": {"alt": "A rising line."}}}),
            new_code_cell('slider(frames, captions, alt="A line that rises.")'),
            new_code_cell("live(draw, controls)", metadata={"tags": ["remove-output"]}),
            new_code_cell("import matplotlib.pyplot as plt\nplt.rcParams", metadata={"tags": ["no-figure"]}),
            *sections[4:7],
            new_code_cell("display_quiz(questions)"),
            sections[7],
            new_markdown_cell(exercise),
            new_markdown_cell(solution),
            *sections[8:],
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )


def edit(old: str, new: str) -> Callable[[NotebookNode], None]:
    """A way to break a notebook: replace `old` in every cell."""

    def change(notebook: NotebookNode) -> None:
        assert any(old in cell.source for cell in notebook.cells)
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)

    return change


def cell_with(notebook: NotebookNode, text: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if text in cell.source)


def swap_sections(notebook: NotebookNode) -> None:
    idea, scratch = cell_with(notebook, "## The idea"), cell_with(notebook, "## From scratch")
    idea.source, scratch.source = scratch.source, idea.source


def commit_picture(notebook: NotebookNode) -> None:
    cell_with(notebook, "1 + 1").outputs.append(new_output("display_data", data={"image/png": ""}))


BREAKS: list[tuple[Check, Callable[[NotebookNode], object]]] = [
    (format_problems, lambda nb: nb.cells[0].update(cell_type="prose")),
    (kernel_problems, lambda nb: nb.metadata.kernelspec.update(name="my-env")),
    (kernel_problems, lambda nb: nb.metadata.pop("kernelspec")),
    (output_problems, lambda nb: cell_with(nb, "plt.plot").update(execution_count=3)),
    (output_problems, lambda nb: cell_with(nb, "plt.plot").outputs.append(new_output("stream", text="x"))),
    (output_problems, lambda nb: cell_with(nb, "1 + 1").update(outputs=[])),
    (output_problems, lambda nb: cell_with(nb, "1 + 1").update(execution_count=None)),
    (output_problems, commit_picture),
    (setup_problems, edit("-q --no-deps", "-q")),
    (setup_problems, edit("git+https://github.com/", "git+https://github.com/x")),
    (setup_problems, edit("check_env(seconds=12)", "check_env()")),
    (setup_problems, lambda nb: nb.cells.insert(1, new_code_cell("1"))),
    (setup_problems, lambda nb: cell_with(nb, "check_env").metadata.update(tags=[])),
    (setup_problems, lambda nb: nb.update(cells=nb.cells[:1])),
    (figure_problems, lambda nb: cell_with(nb, "plt.plot").metadata.pop("mystnb")),
    (figure_problems, lambda nb: cell_with(nb, "plt.plot").metadata.mystnb.image.update(alt="  ")),
    (figure_problems, lambda nb: cell_with(nb, "plt.rcParams").metadata.pop("tags")),
    (figure_problems, edit(', alt="A line that rises."', "")),
    (figure_problems, edit("A line that rises.", "")),
    *((heading_problems, edit(f"## {heading}", "## Something else")) for heading in HEADINGS),
    (heading_problems, edit("## The idea", "### The idea")),
    (heading_problems, edit("# A chapter", "A chapter")),
    (heading_problems, swap_sections),
    (quiz_problems, edit("display_quiz(questions)", "questions")),
    (exercise_problems, edit("{exercise}", "{note}")),
    (exercise_problems, edit("{solution} ex-add", "{solution} ex-other")),
    (exercise_problems, edit(":class: dropdown\n", "")),
    (live_problems, lambda nb: cell_with(nb, "live(").metadata.pop("tags")),
    (live_problems, edit("live(draw, controls)", "interact(draw)")),
    (path_problems, edit("plt.plot([1, 2])", 'plt.imread("/home/me/a.png")')),
    (path_problems, edit("plt.plot([1, 2])", 'plt.imread("~/pictures/a.png")')),
    (path_problems, edit("plt.plot([1, 2])", 'plt.imread(r"C:\\pictures")')),
    (package_problems, edit("One and one?", f"First `pip install {OTHER}`.")),
    (package_problems, edit("One and one?", f"%pip install -q {OTHER}==1.2")),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_check_is_content_with_a_sound_notebook(check: Check) -> None:
    assert check(sound_notebook()) == []


@pytest.mark.parametrize(
    ("check", "spoil"), BREAKS, ids=[f"{check.__name__}-{i}" for i, (check, _) in enumerate(BREAKS)]
)
def test_check_sees_a_broken_notebook(check: Check, spoil: Callable[[NotebookNode], object]) -> None:
    notebook = sound_notebook()
    spoil(notebook)
    assert check(notebook) != []


def test_every_check_is_shown_to_fail() -> None:
    assert {check for check, _ in BREAKS} == set(CHECKS)


def test_a_chapter_without_a_paper_needs_no_numbers_of_one() -> None:
    notebook = sound_notebook()
    edit(f"## {PAPER}", "")(notebook)
    assert heading_problems(notebook, is_model=False) == []
    assert heading_problems(notebook, is_model=True) != []
