"""Checkpoints that are never half written, and that say how they came to be.

`last.pt` holds a run's whole state (weights, optimiser, step, random state) and is only ever read with
`weights_only=True`. `best.safetensors` holds weights alone, with recipe and result in its metadata.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from seglearn import models
from seglearn.errors import InputError
from seglearn.weights import unpack


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader never sees half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o644)  # mkstemp's files are for their owner alone
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state."""
    write_atomically(path, lambda file: torch.save(state, file))


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state onto the CPU; nothing in the file is executed.

    Raises:
        InputError: the file is not there or is no training state.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there: nothing to resume; start without --resume.") from error
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError…
        raise InputError(f"{path} cannot be read as a training state ({error}): remove it and start again.") from error
    return state


def save_weights(path: Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """Write a model's weights with `metadata` (each value as JSON) as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    text = {key: json.dumps(value) for key, value in metadata.items()}
    write_atomically(path, lambda file: save_file(tensors, file, text))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and metadata of a `.safetensors` file; the kernels of shipped ones as float32.

    Raises:
        InputError: the file is not there or is not safetensors.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path} is not there: give a .safetensors file or the folder of a run.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            return unpack({name: file.get_tensor(name) for name in file.keys()}), metadata  # noqa: SIM118 (no mapping)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError(
            f"checkpoint {path} cannot be read ({error}): it is damaged or no safetensors file."
        ) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Weights of a `.safetensors` file, or of one that `torch.save` wrote, as torchvision's are; nothing is executed.

    Raises:
        InputError: the file is not there, or holds no state dict.
    """
    if path.suffix == ".safetensors":
        return read_weights(path)[0]
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"weights {path} are not there: give a .pth or .safetensors file.") from error
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError…
        raise InputError(f"weights {path} cannot be read ({str(error).splitlines()[0]}): no state dict.") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"weights {path} are no state dict, a dictionary of tensors: save `model.state_dict()`.")
    return weights


def load_weights(model: nn.Module, path: Path) -> dict[str, Any]:
    """Load all weights of a checkpoint into `model`, strictly; returns the checkpoint's metadata.

    Raises:
        InputError: unreadable file, another number of classes, or another architecture.
    """
    weights, metadata = read_weights(path)
    mine = model.state_dict()
    differing = [name for name in mine if name in weights and mine[name].shape != weights[name].shape]
    if differing:
        name = differing[0]
        raise InputError(
            f"checkpoint {path} has {name} of shape {list(weights[name].shape)} but the model's is "
            f"{list(mine[name].shape)}: another number of classes or another size; create the model as the checkpoint "
            "says, or start from it with --init_from, which skips what does not fit."
        )
    missing, surplus = sorted(mine.keys() - weights.keys()), sorted(weights.keys() - mine.keys())
    if missing or surplus:
        raise InputError(
            f"checkpoint {path} is of another model: it lacks {missing[:3]} and has {surplus[:3]} besides; "
            "create the model that its metadata names."
        )
    model.load_state_dict(weights)
    return metadata


def init_weights(model: nn.Module, path: Path) -> list[str]:
    """Load what fits from a checkpoint, for another task or the next stage; returns the names left as they were.

    Raises:
        InputError: unreadable file, or not one tensor fits.
    """
    weights, _ = read_weights(path)
    mine = model.state_dict()
    fitting = {name: tensor for name, tensor in weights.items() if name in mine and mine[name].shape == tensor.shape}
    if not fitting:
        raise InputError(f"nothing in checkpoint {path} fits this model: name and shape of every tensor differ.")
    model.load_state_dict(fitting, strict=False)
    return [name for name in mine if name not in fitting]


def load_model(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a checkpoint, in eval mode, and the checkpoint's metadata.

    Args:
        path: a run's folder, of which the best weights are taken, or a `.safetensors` file.

    Raises:
        InputError: no such file, or one that does not say which model it is of.
    """
    path = Path(path)
    path = path / "best.safetensors" if path.is_dir() else path
    _, metadata = read_weights(path)
    if "model" not in metadata or "classes" not in metadata:
        raise InputError(f"checkpoint {path} does not say which model it is of: give one that `seglearn train` wrote.")
    options = metadata.get("options", {})
    model = models.create(metadata["model"], len(metadata["classes"]), metadata["size"], **options)
    load_weights(model, path)
    return model.to(memory_format=torch.channels_last).eval(), metadata
