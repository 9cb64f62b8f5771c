"""The classifiers that the models stand on, written out, with torchvision's parameter names.

`load_torchvision` fills one with the weights that torchvision offers.
"""

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor
from torchvision.models import WeightsEnum, get_weight

from seglearn.backbones.resnet import ResNet
from seglearn.backbones.vgg import VGG
from seglearn.errors import InputError

Weights: TypeAlias = str | WeightsEnum | Mapping[str, Tensor]


def torchvision_state_dict(weights: Weights) -> dict[str, Tensor]:
    """A state dict as it is, or the one that torchvision offers under a name.

    Args:
        weights: a state dict, a member of one of torchvision's enumerations, or its name, such as
            "VGG16_Weights.IMAGENET1K_V1". The file is downloaded once, its hash checked, and kept where
            `torch.hub.get_dir()` says.

    Raises:
        InputError: torchvision does not know the name, or the file cannot be downloaded.
    """
    if isinstance(weights, Mapping):
        return dict(weights)
    try:
        member = get_weight(weights) if isinstance(weights, str) else weights
    except (KeyError, ValueError) as error:
        raise InputError(
            f"torchvision has no weights {weights!r}: give a name such as 'ResNet50_Weights.IMAGENET1K_V1'."
        ) from error
    try:
        return dict(member.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:  # no network; a file cut short, whose hash is then wrong
        raise InputError(
            f"The weights {member} could not be downloaded from {member.url} ({error}): "
            "connect to the network and try again, or give the state dict of a file that you have."
        ) from error


def imagenet_weights(model: ResNet) -> str:
    """The name of torchvision's first ImageNet weights for a ResNet of this depth."""
    return f"ResNet{model.depth}_Weights.IMAGENET1K_V1"


def load_torchvision(model: VGG | ResNet, weights: Weights) -> None:
    """Load torchvision's weights for a net of the same structure, in place.

    A model without classifier leaves the classifier's weights out.

    Args:
        model: the net, of any output stride.
        weights: see `torchvision_state_dict`.

    Raises:
        InputError: as `torchvision_state_dict`, and if the weights are those of another net.
    """
    state_dict = torchvision_state_dict(weights)
    head = "classifier" if isinstance(model, VGG) else "fc"
    if not hasattr(model, head):
        state_dict = {name: value for name, value in state_dict.items() if not name.startswith(f"{head}.")}
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise InputError(f"These weights are not of this {type(model).__name__}: {_first(error)}") from error


def _first(error: Exception) -> str:
    """The first complaint of PyTorch's list, which can run to hundreds of lines."""
    return str(error).splitlines()[1].strip()


__all__ = ["ResNet", "VGG", "imagenet_weights", "load_torchvision", "torchvision_state_dict"]
