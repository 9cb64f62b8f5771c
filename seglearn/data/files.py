"""Pictures and masks on disk: pairing them, reading them, and saying plainly what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seglearn.errors import InputError


def list_pairs(images: Path, masks: Path, names: Iterable[str]) -> list[tuple[Path, Path]]:
    """Pair every picture with the mask of the same name.

    Raises:
        InputError: no name at all, or a picture or mask that is not there.
    """
    pairs = [(images / name, masks / name) for name in names]
    if not pairs:
        raise InputError(f"no picture is listed for {images}: a split needs at least one, so check its list or folder.")
    present = {path for folder in (images, masks) for path in folder.iterdir()}
    for image, mask in pairs:
        if image not in present:
            raise InputError(f"picture {image} is listed but is not there: restore it, or take it off the list.")
        if mask not in present:
            raise InputError(
                f"mask {mask} is missing for picture {image.name}: add it, or take the picture off the list."
            )
    return pairs


def read_image(path: str | Path) -> Tensor:
    """Decode a picture of any mode into RGB: uint8 [3, H, W].

    Raises:
        InputError: the file is not there or cannot be decoded.
    """
    # A copy, since PIL's memory is read-only and torch wants to be able to write.
    return torch.from_numpy(np.array(decode(path).convert("RGB"))).permute(2, 0, 1).contiguous()


def read_mask(path: str | Path, num_classes: int, ignore_index: int) -> Tensor:
    """Decode a mask whose pixel values (grey, or indices into a palette) are class indices: uint8 [H, W].

    Raises:
        InputError: the file is not there, cannot be decoded, is in colour, or holds a value that is neither a
            class nor the ignore index.
    """
    mask = decode(path)
    if mask.mode not in ("L", "P"):
        raise InputError(
            f"mask {path} has mode {mask.mode}: expected 8-bit grey or palette values that are class indices, "
            "so convert its colours to indices first."
        )
    label = torch.from_numpy(np.array(mask))
    present = label.flatten().bincount(minlength=256).nonzero().flatten().tolist()
    wrong = [value for value in present if value >= num_classes and value != ignore_index]
    if wrong:
        hint = " (0 and 255 alone: is this a binary mask?)" if present == [0, 255] else ""
        raise InputError(
            f"mask {path} holds the labels {wrong[:5]}: expected 0..{num_classes - 1}, {ignore_index} for void{hint}; "
            "correct the mask or the class list."
        )
    return label


def read_pair(image_path: Path, mask_path: Path, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Read a picture (uint8 [3, H, W]) and its mask (uint8 [H, W]).

    Raises:
        InputError: as `read_image` and `read_mask`, or when the two differ in size.
    """
    image, label = read_image(image_path), read_mask(mask_path, num_classes, ignore_index)
    if image.shape[1:] != label.shape:
        raise InputError(
            f"picture {image_path} is {image.shape[1]}x{image.shape[2]} but its mask is "
            f"{label.shape[0]}x{label.shape[1]} (height x width): both must have one size, so make the mask anew."
        )
    return image, label


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
