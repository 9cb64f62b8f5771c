"""The models of the course, one file per paper. `create` makes one by its name.

Every model maps `[N, 3, H, W]` normalised images to `[N, num_classes, H, W]` logits for any size, and has

- `loss(images, labels, criterion)`, which takes the loss where its paper does;
- `parameter_groups()`, with the paper's factors on learning rate and weight decay;
- `load_imagenet(weights)`, if its paper starts from a classifier trained on ImageNet.
"""

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeAlias

from seglearn.errors import InputError
from seglearn.models import (
    combined,
    crfrnn,
    deeplab_v1,
    deeplab_v2,
    deeplab_v3,
    dilation,
    fcn,
    fcn_resnet,
    gcn,
    patch,
    pspnet,
    refinenet,
    segnet,
    unet,
)
from seglearn.weights import DATA as _SHIPPED
from seglearn.weights import load_into

Model: TypeAlias = (
    patch.PatchClassifier
    | fcn.FCN
    | unet.UNet
    | segnet.SegNet
    | segnet.SegNetBasic
    | deeplab_v1.DeepLabV1
    | crfrnn.FCNCRF
    | dilation.Dilation
    | deeplab_v2.DeepLabV2
    | refinenet.RefineNet
    | pspnet.PSPNet
    | gcn.GCN
    | fcn_resnet.FCNResNet
    | deeplab_v3.DeepLabV3
    | combined.Combined
)

SIZES = ("paper", "laptop")

_BUILDERS: dict[str, dict[str, Callable[..., Model]]] = {
    "patch": {"paper": patch.paper, "laptop": patch.laptop},
    "fcn32s": {"paper": partial(fcn.paper, stride=32), "laptop": partial(fcn.laptop, stride=32)},
    "fcn16s": {"paper": partial(fcn.paper, stride=16), "laptop": partial(fcn.laptop, stride=16)},
    "fcn8s": {"paper": partial(fcn.paper, stride=8), "laptop": partial(fcn.laptop, stride=8)},
    "fcn8s_atonce": {
        "paper": partial(fcn.paper, stride=8, at_once=True),
        "laptop": partial(fcn.laptop, stride=8, at_once=True),
    },
    "unet": {"paper": unet.paper, "laptop": unet.laptop},
    "unet_padded": {"paper": partial(unet.paper, padded=True), "laptop": partial(unet.laptop, padded=True)},
    "segnet": {"paper": segnet.paper, "laptop": segnet.laptop},
    "segnet_basic": {"paper": segnet.paper_basic, "laptop": segnet.laptop_basic},
    "deeplab_v1": {"paper": deeplab_v1.paper, "laptop": deeplab_v1.laptop},
    "deeplab_v1_msc": {"paper": partial(deeplab_v1.paper, msc=True), "laptop": partial(deeplab_v1.laptop, msc=True)},
    "crfrnn": {"paper": crfrnn.paper, "laptop": crfrnn.laptop},
    "dilation_front": {
        "paper": partial(dilation.paper, context=None),
        "laptop": partial(dilation.laptop, context=None),
    },
    "dilation": {"paper": dilation.paper, "laptop": dilation.laptop},
    "deeplab_v2": {"paper": deeplab_v2.paper, "laptop": deeplab_v2.laptop},
    "refinenet": {"paper": refinenet.paper, "laptop": refinenet.laptop},
    "pspnet": {"paper": pspnet.paper, "laptop": pspnet.laptop},
    "gcn": {"paper": gcn.paper, "laptop": gcn.laptop},
    "fcn_resnet": {"paper": fcn_resnet.paper, "laptop": fcn_resnet.laptop},
    "deeplab_v3": {"paper": deeplab_v3.paper, "laptop": deeplab_v3.laptop},
    "combined": {"paper": combined.paper, "laptop": combined.laptop},
}

# models of torchvision's structure, which its trained weights fit
_FROM_TORCHVISION: dict[str, Callable[..., Model]] = {
    "fcn_resnet": fcn_resnet.from_torchvision,
    "deeplab_v3": deeplab_v3.from_torchvision,
}


def names() -> list[str]:
    """Names that `create` knows, in the order of the papers."""
    return list(_BUILDERS)


def create(name: str, num_classes: int, size: str = "paper", weights: str | None = None, **options: Any) -> Model:
    """A model by its name.

    Args:
        name: one of `names()`.
        num_classes: number of classes, at least 2.
        size: "paper" for the paper's own, "laptop" for one of at most 2 million parameters.
        weights: None for a fresh model; "imagenet" to start the paper's size from torchvision's classifier;
            "torchvision" for a whole model that torchvision has trained (`deeplab_v3`, `fcn_resnet`); "camvid" or
            "scenes" for a laptop model of 11 classes that this package ships, trained on that data set.
        options: variants of the paper, such as `depth=50` for the ResNet of a `pspnet`; see the builders `paper` and
            `laptop` of the model's module.

    Raises:
        InputError: an unknown name, size, option or kind of weights; fewer than 2 classes; weights that cannot be
            downloaded or do not fit.
    """
    if name not in _BUILDERS:
        raise InputError(_unknown("model", name, names()))
    if size not in SIZES:
        raise InputError(_unknown("size", size, SIZES))
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}: a model needs at least 2 to tell apart.")
    shipped = weights in _SHIPPED
    if weights and not shipped and weights not in ("imagenet", "torchvision"):
        raise InputError(_unknown("kind of weights", weights, ("imagenet", "torchvision", *_SHIPPED)))
    if shipped and (num_classes != 11 or size != "laptop"):
        raise InputError(
            f"The {weights} weights are of laptop models of 11 classes, not of {num_classes} in {size} size: "
            "take num_classes=11 and size='laptop', or no weights."
        )
    if weights and not shipped and size != "paper":
        raise InputError(f"There are no {weights} weights for a model of {size} size: take size='paper', or none.")
    builder = _BUILDERS[name][size]
    if weights == "torchvision":
        if name not in _FROM_TORCHVISION:
            raise InputError(f"torchvision has no trained weights for {name}: only for {', '.join(_FROM_TORCHVISION)}.")
        builder = _FROM_TORCHVISION[name]
    _check_options(name, builder, options)
    model = builder(num_classes, **options)
    if weights == "imagenet":
        load = getattr(model, "load_imagenet", None)
        if load is None:
            raise InputError(f"{name} is trained from scratch in its paper: leave weights out.")
        load()
    if weights and shipped:
        load_into(model, weights, name, options)
    return model


def _check_options(name: str, builder: Callable[..., Model], options: dict[str, Any]) -> None:
    _, *parameters = inspect.signature(builder).parameters
    for option in options:
        if option not in parameters:
            known = f"{name} has {', '.join(parameters)}" if parameters else f"{name} has none"
            raise InputError(f"Unknown option {option!r}: {known}.")


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    nearest = get_close_matches(name, known, n=1, cutoff=0)
    return f"Unknown {kind} {name!r}: did you mean {nearest[0]!r}? There are {', '.join(known)}."
