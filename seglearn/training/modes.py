"""What learns and what is held: frozen modules, and the statistics of batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from seglearn.data.transforms import normalize
from seglearn.errors import InputError
from seglearn.inference import evaluation_mode

BATCH_NORM = nn.modules.batchnorm._BatchNorm


def freeze(net: nn.Module, names: Sequence[str], norms: bool = False) -> None:
    """Take the named modules out of training: no gradient, and (by `start_training`) no update of norms.

    With `norms`, all batch normalisation as well, with its scale and shift.

    Raises:
        InputError: the model has no module of such a name; or nothing is left to train.
    """
    modules = dict(net.named_modules())
    for name in names:
        if name not in modules:
            near = get_close_matches(name, [known for known in modules if known], 1, cutoff=0)[0]
            raise InputError(f"freeze names {name!r}, which this model does not have: did you mean {near!r}?")
        modules[name].requires_grad_(False)
    if norms:
        for module in modules.values():
            if isinstance(module, BATCH_NORM):
                module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise InputError(f"freeze {list(names)} holds every parameter of the model: leave one out.")


def start_training(net: nn.Module) -> None:
    """Training mode for all but frozen modules: these keep evaluation mode, so that their norms stand still too."""
    net.train()
    for module in net.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


def synchronise_norms(net: nn.Module) -> nn.Module:
    """The net with batch normalisation over the images of all processes; names and weights stay.

    Raises:
        InputError: there is no GPU, and PyTorch synchronises norms on GPUs only.
    """
    if not torch.cuda.is_available():
        raise InputError("sync_norms needs GPUs, and this machine has none: leave it out, or use one process.")
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)


def check_normalisation(net: nn.Module, images: int) -> None:
    """Refuse to train batch normalisation on single images: its statistics would be those of one picture."""
    if images == 1 and any(isinstance(module, BATCH_NORM) and module.training for module in net.modules()):
        raise InputError(
            "1 image is computed at a time, but this model has batch normalisation, which needs at least 2: "
            "raise batch_size, lower accumulate, or use fewer processes."
        )


def recompute_batch_norm(net: nn.Module, dataset: Any, batch_size: int) -> None:
    """Replace the running means and variances by plain averages over a dataset, with the weights as they are now.

    SegNet's authors do so after training: a running average still remembers older weights.

    Args:
        dataset: of images of one size; batches of `batch_size` are taken in order, an incomplete last one is left out.
    """
    device = next(net.parameters()).device

    def batches() -> Any:
        for first in range(0, len(dataset) - batch_size + 1, batch_size):
            images = torch.stack([dataset[index][0] for index in range(first, first + batch_size)])
            yield normalize(images.to(device)).contiguous(memory_format=torch.channels_last)

    with evaluation_mode(net):  # update_bn trains what it has to, and would leave all of the net in one mode
        torch.optim.swa_utils.update_bn(batches(), net)
