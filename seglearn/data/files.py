"""Pictures and masks on disk: pairing them, reading them, and saying plainly what is wrong with one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pooch
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from seglearn.errors import InputError

Colour = tuple[int, int, int]
Colours = tuple[tuple[Colour, int], ...]  # which RGB value means which label

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
PREFLIGHT = 200_000_000  # pixels of masks that a dataset reads when it is loaded: a few seconds
UNKNOWN = 254  # marks in a colour table what no line of it names, so 254 classes and void are the most


class FileDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pictures and masks in files: what `VOC2012`, `Cityscapes`, `OxfordPets` and `Folder` have in common.

    When it is loaded, every file is looked for and masks are read, evenly spread over the split, until about
    200 million pixels were seen (all masks of CamVid or of VOC's train, 95 of Cityscapes). Every other mask is checked
    when it is read, and all of them by `seglearn data check`.

    Args:
        split: name of the split.
        pairs: picture and mask of every item.
        preflight: read masks now. `seglearn data check` leaves it to itself, to list all that is wrong.

    Raises:
        InputError: no item, a file that is not there, or, at load or when an item is read, a file that cannot be
            decoded, sizes that differ, a label or a colour that is no class.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    ignore_index = 255
    colours: Colours | None = None  # masks are read by colour
    values: Mapping[int, int] | None = None  # pixel value of a mask: label

    def __init__(self, split: str, pairs: Sequence[tuple[Path, Path]], preflight: bool = True):
        self.split, self.pairs = split, list(pairs)
        check_pairs(self.pairs, f"the {split} split of {self.name}")
        self.ids = [image.stem for image, _ in self.pairs]
        if preflight:
            self.check_masks()

    @property
    def num_classes(self) -> int:
        """How many classes there are, void not counted."""
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image_path, mask_path = self.pairs[index]
        image, label = read_image(image_path), self.read_label(mask_path)
        check_sizes(image_path, image, label)
        return image, label

    def read_label(self, path: Path) -> Tensor:
        """The label map of one mask file: uint8 [H, W]."""
        return read_mask(path, self.num_classes, self.ignore_index, self.colours, self.values)

    def check_masks(self) -> None:
        """Read masks until `PREFLIGHT` pixels were seen."""
        masks = [mask for _, mask in self.pairs]
        step = -(-self.read_label(masks[0]).numel() * len(masks) // PREFLIGHT)
        counts = torch.zeros(256, dtype=torch.int64)
        with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter's lock
            for label in pool.map(self.read_label, masks[::step]):
                counts += count_labels(label)
        self.check_counts(counts)

    def check_counts(self, counts: Tensor) -> None:
        """Refuse what no single mask shows; `counts` int64 [256] says how many pixels of many masks have each label."""


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Where datasets lie: `root`, else the environment variable `SEGLEARN_DATA`, else a cache folder of this user."""
    return Path(root or os.environ.get("SEGLEARN_DATA") or pooch.os_cache("seglearn")).expanduser()


def first_with(marker: str, candidates: Sequence[Path]) -> Path:
    """The first folder in which `marker` is found; the first of all where none has it."""
    return next((folder for folder in candidates if (folder / marker).exists()), candidates[0])


def check_pairs(pairs: Sequence[tuple[Path, Path]], what: str) -> None:
    """See that there are pairs and that both files of each are there.

    Raises:
        InputError: no pair at all, or a picture or mask that is not there.
    """
    if not pairs:
        raise InputError(f"no picture is listed for {what}: a split needs at least one, so check its list or folder.")
    folders = {path.parent for pair in pairs for path in pair}
    present = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    for image, mask in pairs:
        if image not in present:
            raise InputError(f"picture {image} is listed but is not there: restore it, or take it off the list.")
        if mask not in present:
            raise InputError(
                f"mask {mask} is missing for picture {image.name}: add it, or take the picture off the list."
            )


def pictures_in(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their names without extension, in alphabetical order; none if it is not there.

    Raises:
        InputError: two pictures differ in nothing but their extension.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in PICTURES and not path.name.startswith("."):
            if path.stem in found:
                raise InputError(
                    f"pictures {found[path.stem]} and {path.name} have one name, so their masks cannot be told apart: "
                    "rename one."
                )
            found[path.stem] = path
    return found


def warn_of_size(name: str, split: str, found: int, published: int) -> None:
    """Warn where a split has another size than the published one: its scores cannot be set beside others'."""
    if found != published:
        warnings.warn(
            f"{name} {split} has {found} pictures here, the published split {published}: scores on it are not "
            "comparable with others'.",
            stacklevel=3,  # whoever made the dataset
        )


def check_disjoint(splits: Mapping[str, Sequence[str]]) -> None:
    """See that no name is in two splits: a model must not be scored on what it was trained on.

    Raises:
        InputError: two splits share a name.
    """
    seen: dict[str, str] = {}
    for split, names in splits.items():
        shared = [name for name in names if name in seen]
        if shared:
            raise InputError(
                f"splits {seen[shared[0]]} and {split} share pictures, {len(shared)} in all, such as {shared[0]}: "
                "scores on one would be of pictures seen in the other, so take them off one of the two."
            )
        seen |= dict.fromkeys(names, split)


def read_image(path: str | Path) -> Tensor:
    """Decode a picture of any mode into RGB: uint8 [3, H, W].

    It is turned as its EXIF tag says, as viewers and annotation tools show it. Transparency is dropped.

    Raises:
        InputError: the file is not there, cannot be decoded, or has more than 8 bits a channel.
    """
    picture = decode(path)
    if picture.mode[0] in "IF":  # PIL would cut these off at 255: a white picture
        raise InputError(
            f"picture {path} has mode {picture.mode}: expected 8 bits a channel, so rescale its values to 0..255 and "
            "save it anew."
        )
    # A copy, since PIL's memory is read-only and torch wants to be able to write.
    rgb = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    return torch.from_numpy(rgb).permute(2, 0, 1).contiguous()


def read_mask(
    path: str | Path,
    num_classes: int,
    ignore_index: int,
    colours: Colours | None = None,
    values: Mapping[int, int] | None = None,
) -> Tensor:
    """Decode a mask into class indices: uint8 [H, W].

    Without `colours`, a pixel's value (grey, or index into the palette) is its label, or is mapped to it by `values`.
    With `colours`, the RGB value decides, in palette masks too, whose indices some programs number as they like; but
    grey masks are read by value unless the colours themselves are all grey.

    Raises:
        InputError: the file is not there, cannot be decoded, is in colour where none is expected, or holds a value or
            colour that is no class and not void.
    """
    mask = decode(path)
    if colours and (mask.mode not in ("1", "L") or all(len(set(colour)) == 1 for colour, _ in colours)):
        return read_colours(path, mask, colours)
    if mask.mode not in ("1", "L", "P"):
        raise InputError(
            f"mask {path} has mode {mask.mode}: expected 8-bit grey or palette values that are class indices, "
            "so convert its colours to indices first (with `data: folder`, list its colours in classes.txt)."
        )
    label = torch.from_numpy(np.array(mask, np.uint8))
    counts = count_labels(label)
    present = counts.nonzero().flatten().tolist()
    known = values if values is not None else {*range(num_classes), ignore_index}
    wrong = [value for value in present if value not in known]
    if wrong:
        expected = f"0..{num_classes - 1}, {ignore_index} for void"
        if values is not None:
            expected = ", ".join(map(str, sorted(values)))
        hint = " (0 and 255 alone: is this a binary mask?)" if present == [0, 255] else lossy_hint(path)
        pixels = ", ".join(f"{counts[value]} pixels have {value}" for value in wrong[:5])
        raise InputError(
            f"mask {path} holds the labels {wrong[:5]}: expected {expected}, but {pixels}{hint}; "
            "correct the mask or the class list."
        )
    if values is None:
        return label
    table = torch.zeros(256, dtype=torch.uint8)
    table[list(values)] = torch.tensor(list(values.values()), dtype=torch.uint8)
    return table[label.int()]


def read_colours(path: str | Path, mask: Image.Image, colours: Colours) -> Tensor:
    """Look up the label of every pixel's RGB value: uint8 [H, W].

    Raises:
        InputError: a colour that `colours` does not name.
    """
    rgb = np.array(mask.convert("RGB"))
    key = rgb[..., 0].astype(np.int32) << 16 | rgb[..., 1].astype(np.int32) << 8 | rgb[..., 2]
    label = colour_table(colours)[key]
    unknown = key[label == UNKNOWN]
    if unknown.size:
        found, counts = np.unique(unknown, return_counts=True)
        most = found[counts.argmax()]
        colour = (int(most >> 16), int(most >> 8 & 255), int(most & 255))
        others = f" and {len(found) - 1} more colours" if len(found) > 1 else ""
        raise InputError(
            f"mask {path} holds the colour {colour} at {counts.max()} pixels{others} ({unknown.size} pixels in all), "
            f"but the class list names no such colour{lossy_hint(path, len(found) > 30)}; add it there, or correct the "
            "mask."
        )
    return torch.from_numpy(label)


@lru_cache(maxsize=2)
def colour_table(colours: Colours) -> np.ndarray:
    """Label of every RGB value (red the highest byte): uint8 [2**24]. Looking up is faster than any comparison."""
    table = np.full(1 << 24, UNKNOWN, np.uint8)
    for (red, green, blue), label in colours:
        table[red << 16 | green << 8 | blue] = label
    return table


def lossy_hint(path: str | Path, suspicious: bool = False) -> str:
    """What is likely where a mask holds values between those of its classes."""
    if suspicious or Path(path).suffix.lower() in (".jpg", ".jpeg"):
        return " (was the mask saved as JPEG, or resized with interpolation? Either mixes labels)"
    return ""


def count_labels(label: Tensor) -> Tensor:
    """How many pixels of uint8 [H, W] have each value: int64 [256]."""
    return label.flatten().bincount(minlength=256)


def check_sizes(path: Path, image: Tensor, label: Tensor) -> None:
    """See that a picture [3, H, W] and its label map [H, W] have one size.

    Raises:
        InputError: they have not.
    """
    if image.shape[1:] != label.shape:
        swapped = ", one turned against the other" if image.shape[:0:-1] == label.shape else ""
        raise InputError(
            f"picture {path} is {image.shape[1]}x{image.shape[2]} but its mask is "
            f"{label.shape[0]}x{label.shape[1]} (height x width){swapped}: both must have one size, so make the mask "
            "anew."
        )


def decode(path: str | Path) -> Image.Image:
    """Open and decode a picture, so that a damaged file is named here and not deep in a training run."""
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError as error:
        raise InputError(f"picture {path} is not there: check the path.") from error
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises SyntaxError on a broken PNG chunk
        raise InputError(
            f"picture {path} cannot be decoded ({error}): replace it, it is damaged or no picture."
        ) from error
    return picture


def brief(error: Exception) -> str:
    """What went wrong, without the layers of connection pools that an HTTP library wraps around it."""
    reason = getattr(error.args[0], "reason", error) if error.args else error
    return (str(reason).split("): ", 1)[-1].splitlines() or [type(error).__name__])[0][:200]
