"""`seglearn data check`: what the page counts, what it finds wrong, and its exit code."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cityscapes import write_frame

from seglearn import cli
from seglearn.data.check import check
from seglearn.errors import InputError

SIZES = {"train": [(2, 4)] * 3 + [(3, 4)], "val": [(2, 4)] * 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures for training, two for validation, all different; class 2 is rare, and there is some void.

    Class 0 fills every mask but three pixels: class 1, class 2 (only in the first picture of a split) and void.
    """
    root = tmp_path / "mine"
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("sky\nroad\nsign\n")
    for split, sizes in SIZES.items():
        names = [f"{split}{index}" for index in range(len(sizes))]
        (root / f"{split}.txt").write_text("\n".join(names))
        for name, size in zip(names, sizes, strict=True):
            label = np.zeros(size, np.uint8)
            label[0, :3] = (1, 2 if name.endswith("0") else 0, 255)
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / "images" / f"{name}.png")
            Image.fromarray(label).save(root / "masks" / f"{name}.png")
    return root


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", "check", *words])
    return int(caught.value.code or 0)


def test_counts(folder: Path) -> None:
    """By hand: train has 3 * 8 + 12 = 36 pixels, of which 4 are void, 4 road and 1 sign; so 32 labelled, 27 sky."""
    report = check(str(folder))
    train, val = report.splits["train"], report.splits["val"]
    assert train.pixels[[0, 1, 2, 255]].tolist() == [27, 4, 1, 4]
    assert train.images[[0, 1, 2]].tolist() == [4, 4, 1]
    assert train.frequency == pytest.approx([27 / 32, 4 / 32, 1 / 32])
    assert train.void_share == pytest.approx(4 / 36) and val.void_share == pytest.approx(2 / 16)
    assert report.problems == report.notes == []


def test_page_and_sheet(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(folder), "--out", str(tmp_path / "sheet.png")) == 0
    page = capsys.readouterr().out
    for line in (
        r"folder: 3 classes, 255 is void",
        r"train +4 +11\.11%   2x4 \(3\), 3x4 \(1\)",
        r"2  sign +3\.12% +1 +7\.14% +1",
        r"rarest in train: sign 3\.12%, road 12\.50%, sky 84\.38%",
        r"problems: none",
        r"notes: none",
    ):
        assert re.search(line, page), line
    assert page.count("\n") < 40
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > 800


def duplicate(root: Path) -> None:
    """The same pixels under another name and in another format, so no comparison of names or of bytes finds it."""
    Image.open(root / "images" / "train1.png").save(root / "images" / "val1.tif")
    (root / "images" / "val1.png").unlink()


def copy_within(root: Path) -> None:
    (root / "images" / "train2.png").write_bytes((root / "images" / "train1.png").read_bytes())


def mask(name: str, value: int) -> Callable[[Path], None]:
    return lambda root: Image.new("L", (4, 2), value).save(root / "masks" / f"{name}.png")


def binary(root: Path) -> None:
    for path in (root / "masks").iterdir():
        label = np.array(Image.open(path))
        Image.fromarray(np.where(label == 1, 255, 0).astype(np.uint8)).save(path)


def damaged(root: Path) -> None:
    (root / "images" / "val1.png").write_bytes(b"\x89PNG")


PROBLEMS = [
    (duplicate, r"the same picture is in train \(train1\) and val \(val1\)"),
    (mask("val1", 7), r"val1\.png holds the labels \[7\]"),
    (damaged, r"val1\.png cannot be decoded"),
    (binary, r"masks of train .* hold only 0 and 255"),
]
NOTES = [
    (copy_within, r"train holds pictures twice, 1 in all"),
    (mask("val1", 255), r"val has 1 pictures without a labelled pixel, such as val1"),
    (mask("val1", 255), r"val is void for 56%"),
    (mask("train0", 0), r"train never shows sign: no network can learn it"),
    (mask("val0", 0), r"val never shows sign, so its mIoU is a mean of fewer classes"),
]


@pytest.mark.parametrize(("breaks", "sentence"), PROBLEMS)
def test_problems(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], breaks: Callable[[Path], None], sentence: str
) -> None:
    breaks(folder)
    assert run(str(folder), "--out", str(tmp_path / "sheet.png")) == 1
    page = capsys.readouterr().out
    assert re.search(sentence, page.split("problems: ")[1].split("notes: ")[0])
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(("breaks", "sentence"), NOTES)
def test_notes(folder: Path, breaks: Callable[[Path], None], sentence: str) -> None:
    breaks(folder)
    report = check(str(folder))
    assert report.problems == [] and re.search(sentence, "\n".join(report.notes))


def test_every_broken_item_is_listed(folder: Path) -> None:
    """Loading stops at the first; here all are wanted."""
    for name in ("train0", "train3", "val0"):
        mask(name, 9)(folder)
    assert len(check(str(folder)).problems) == 3


def test_nothing_readable_is_still_a_page(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        path.write_bytes(b"")
    report = check(str(folder))
    assert len(report.problems) == 6 and "nan" in report.page()
    assert report.sheet()


def test_trees_are_recognised(tmp_path: Path, camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = check(str(camvid))
    assert [len(split.items) for split in report.splits.values()] == [12, 5]
    assert report.notes[0] == "train has 12 images, the original 367." and report.problems == []
    assert list(check("camvid").splits) == ["train", "val"]  # by name, from SEGLEARN_DATA

    write_frame(tmp_path / "city", "train", "ulm_000000_000019", np.arange(34).reshape(2, 17))
    report = check(str(tmp_path / "city"))
    assert report.splits["train"].dataset.name == "cityscapes"
    assert report.splits["train"].images[:19].tolist() == [1] * 19


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "'nowhere' is neither a folder nor a dataset: give a path, or one of camvid"),
        ([], "check needs a dataset's name or the path of a folder"),
        (["scenes", "--out", "nowhere/sheet.png"], "the folder of --out nowhere/sheet.png is not there"),
        (["cityscapes", "--root", "."], "no split of cityscapes was found in ."),
    ],
)
def test_unusable_input_exits_with_2(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert sentence in capsys.readouterr().err


def test_one_picture_in_two_lists_exits_with_2(folder: Path) -> None:
    (folder / "val.txt").write_text("val0\ntrain1\n")
    with pytest.raises(InputError, match="splits train and val share pictures, 1 in all, such as train1"):
        check(str(folder))


REAL = os.environ.get("SEGLEARN_DATA")


@pytest.mark.skipif(not REAL or not (Path(REAL) / "CamVid" / "train.txt").exists(), reason="needs the real CamVid")
def test_real_camvid_has_the_known_histogram() -> None:
    """Pixels of each class and void, and pictures that hold it, counted in the release by others' scripts."""
    train = check("camvid", REAL).splits["train"]
    pixels = [10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385, 184967, 2503995]
    assert train.pixels[:12].tolist() == pixels and train.pixels[12:].sum() == 0
    assert train.images[:11].tolist() == [366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201]
