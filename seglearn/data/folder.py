"""Pictures and masks of your own, with no code written: `data: folder` and `root: PATH` in a recipe.

The folder says everything::

    PATH/classes.txt         one class a line, in the order of the labels: NAME, or NAME RED GREEN BLUE
    PATH/images/             pictures: jpg, png, bmp, tif, webp, mixed as they come
    PATH/masks/              a mask for each, of the same name up to its extension
    PATH/train.txt, val.txt  which picture belongs to which split, one name a line

The splits come from the first of these that is there:

1. folders: `images/train/` and `masks/train/`, `images/val/` and `masks/val/`, and so on;
2. lists: `train.txt`, `val.txt`, `test.txt`;
3. else one picture in five becomes `val`, those whose names have the smallest SHA-256. The same names always give the
   same split. But frames of one film that lie side by side are nearly the same picture: give lists for such data, or
   the scores will be too good.

The layout of VOC is understood as well, as labelme's `labelme2voc.py` writes it: `JPEGImages/`, masks in
`SegmentationClassPNG/` or else in `SegmentationClass/`, class names in `class_names.txt`, lists in
`ImageSets/Segmentation/` if there are any.

Without colours in `classes.txt` the value of a mask's pixel is its label, and 255 is void. With colours, RGB and
palette masks are read by colour; grey ones by value, unless all colours are grey (`object 255 255 255`). A line
`void RED GREEN BLUE` (labelme: `__ignore__`) gives a colour of pixels that do not count. A class or `void` may have
several lines, one for each of its colours. Lines that begin with # are comments.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from torch import Tensor

from seglearn.data.files import PICTURES, UNKNOWN, Colour, Colours, FileDataset, check_disjoint, pictures_in
from seglearn.data.voc import voc_palette
from seglearn.errors import InputError

SPLITS = ("train", "val", "test")
VOID = ("void", "__ignore__")
IGNORE_INDEX = 255
SHARE = 5  # one picture in so many is for validation where neither folders nor lists say


class Folder(FileDataset):
    """One split of a folder of your own; the layout is this module's description.

    Args:
        root: the folder.
        split: `train`, `val`, or another that the folder has.
        preflight: see `FileDataset`.

    An item is `(image uint8 [3, H, W], label uint8 [H, W])`, labels 0..C-1 and 255 for void. `splitting` says in words
    what the splits came from.

    At load, lists may not share a name, and masks may not be binary ones (0 and 255 alone, no colours given): 255 would
    be taken for void, and the object never be learned.

    Raises:
        InputError: no such folder, an unusable class list, a split that is not there, one picture in two lists; and
            what `FileDataset` refuses.
    """

    name = "folder"
    ignore_index = IGNORE_INDEX

    def __init__(self, root: str | os.PathLike[str] | None, split: str = "train", preflight: bool = True):
        self.folder, images, masks, lists = layout(root)
        self.classes, self.palette, self.colours = read_classes(class_file(self.folder))
        names, self.splitting = find_splits(images, lists)
        if split not in names:
            raise InputError(
                f"split {split!r} was not found in {self.folder}: it has {', '.join(names)}, {self.splitting}."
            )
        if self.splitting.startswith("by folder"):
            images, masks = images / split, masks / split
        pictures, labels = pictures_in(images), pictures_in(masks)
        pairs = [(pictures.get(name, images / name), labels.get(name, masks / f"{name}.png")) for name in names[split]]
        super().__init__(split, pairs, preflight)

    def check_counts(self, counts: Tensor) -> None:
        """Refuse binary masks, whose 255 would pass for void."""
        if counts.nonzero().flatten().tolist() == [0, 255] and not self.colours and self.num_classes > 1:
            raise InputError(
                f"masks of {self.split} in {self.folder}, such as {self.pairs[0][1].name}, hold only 0 and 255, which "
                f"is void here (is this a binary mask?): say which is which in classes.txt, by the lines "
                f"`{self.classes[0]} 0 0 0` and `{self.classes[1]} 255 255 255`."
            )

    @staticmethod
    def splits(root: str | os.PathLike[str] | None) -> list[str]:
        """The splits that are there."""
        _, images, _, lists = layout(root)
        return list(find_splits(images, lists)[0])


def layout(root: str | os.PathLike[str] | None) -> tuple[Path, Path, Path, Path]:
    """The folder itself, and in it those of pictures, masks and lists.

    Raises:
        InputError: no root is given, or neither layout is there.
    """
    if root is None:
        raise InputError("the dataset 'folder' has no root: write `root: PATH` in the recipe, or give --root PATH.")
    home = Path(root).expanduser()
    if (home / "images").is_dir() and (home / "masks").is_dir():
        return home, home / "images", home / "masks", home
    for masks in ("SegmentationClassPNG", "SegmentationClass"):
        if (home / "JPEGImages").is_dir() and (home / masks).is_dir():
            return home, home / "JPEGImages", home / masks, home / "ImageSets" / "Segmentation"
    what = "has neither images/ and masks/ nor JPEGImages/ and SegmentationClass/" if home.is_dir() else "is not there"
    raise InputError(f"the data folder {home} {what}: put pictures into images/ and masks into masks/ in it.")


def class_file(root: Path) -> Path:
    """The folder's list of classes.

    Raises:
        InputError: there is none.
    """
    for name in ("classes.txt", "class_names.txt"):
        if (root / name).is_file():
            return root / name
    raise InputError(
        f"the data folder {root} has no classes.txt: write one, a class a line, NAME or NAME RED GREEN BLUE, in the "
        "order of the labels from 0."
    )


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[Colour, ...], Colours | None]:
    """Class names, the colours to draw them with, and what each colour in a mask means (None: no colours are given).

    Raises:
        InputError: no class, too many, some with a colour and some without, a name or colour given twice.
    """
    known: dict[str, list[Colour]] = {}  # the colours of each class, in the order of their lines
    void: list[Colour] = []
    meaning: dict[Colour, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, *numbers = re.fullmatch(r"(.*?)(?:\s+(\d+)\s+(\d+)\s+(\d+))?", line.strip()).groups()  # type: ignore[union-attr]
        if name in known and numbers[0] is None:
            raise InputError(f"{path}, line {number}, names {name!r} again: list a class once, or with other colours.")
        if name not in VOID:
            known.setdefault(name, [])
        if numbers[0] is None:
            continue
        red, green, blue = map(int, numbers)
        colour = (red, green, blue)
        if max(colour) > 255:
            raise InputError(f"{path}, line {number}, has the colour {colour}: each value must be 0 to 255.")
        if meaning.setdefault(colour, name) != name:
            raise InputError(f"{path} gives the colour {colour} to {meaning[colour]!r} and {name!r}: keep one of them.")
        (void if name in VOID else known[name]).append(colour)
    if not known or len(known) > UNKNOWN:
        raise InputError(f"{path} lists {len(known)} classes: expected 1 to {UNKNOWN}, one a line.")
    without = [name for name, colours in known.items() if not colours]
    if len(without) == len(known) and not void:
        return tuple(known), voc_palette(len(known)), None
    if without:
        raise InputError(f"{path} gives no colour for {without[0]!r} but for others: give all classes one, or none.")
    index = {name: label for label, name in enumerate(known)} | dict.fromkeys(VOID, IGNORE_INDEX)
    return (
        tuple(known),
        tuple(colours[0] for colours in known.values()),
        tuple((colour, index[name]) for colour, name in meaning.items()),
    )


def find_splits(images: Path, lists: Path) -> tuple[dict[str, list[str]], str]:
    """Names of the pictures of every split, without extension, and in words what the splits came from.

    Raises:
        InputError: a list that names a picture twice, or two that share one.
    """
    folders = sorted(path for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
    if folders:
        return {folder.name: list(pictures_in(folder)) for folder in folders}, f"by folders in {images}"
    files = {split: lists / f"{split}.txt" for split in SPLITS if (lists / f"{split}.txt").is_file()}
    if files:
        splits = {split: read_list(path) for split, path in files.items()}
        check_disjoint(splits)
        return splits, f"by lists in {lists}"
    names = list(pictures_in(images))
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    val = set(ranked[: max(1, round(len(names) / SHARE))])
    return (
        {"train": [name for name in names if name not in val], "val": [name for name in names if name in val]},
        f"one in {SHARE} for val by the hash of its name (no lists in {lists})",
    )


def read_list(path: Path) -> list[str]:
    """The names in a list file, one a line, with or without folder and extension; a name may contain spaces.

    Raises:
        InputError: a name stands there twice.
    """
    lines = [Path(line.strip()) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    names = [line.stem if line.suffix.lower() in PICTURES else line.name for line in lines]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice:
        raise InputError(f"{path} lists {twice} twice: take one of the lines out.")
    return names
