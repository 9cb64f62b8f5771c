"""CRF-RNN on FCN-8s: a network that ends in a CRF (Zheng, Jayasumana, Romera-Paredes et al. 2015, arXiv 1502.03240).

FCN-8s gives scores, rounds of mean field sharpen them along the image's edges (`seglearn.crf.rnn`), and the loss behind
both trains both: the net learns scores that the CRF can use.

Chapter: book/models/crfrnn.

Differs from the paper:
    - upsampling in FCN-8s is fixed, see `seglearn.models.fcn`. 134 364 074 parameters at 21 classes;
    - laptop size: the laptop's FCN-8s, and one learning rate for all. The release's factors of 10 000 and 1 000 balance
      a rate of 1e-13 and a loss summed over pixels; Adam takes steps of one size whatever the gradient's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from seglearn.backbones import Weights
from seglearn.crf.rnn import CRFRNN
from seglearn.data.transforms import MEAN, STD
from seglearn.models import fcn


class FCNCRF(nn.Module):
    """FCN-8s and the layer on top, for every height and width from 1 pixel on. 5 rounds in training, 10 at test.

    Args:
        net: gives the scores.
        num_classes: number of classes, C in the shapes below.
        factors: learning rates of the CRF's kernel weights and of its compatibility, relative to the net's.
    """

    def __init__(self, net: fcn.FCN, num_classes: int, factors: tuple[float, float]) -> None:
        super().__init__()
        self.fcn = net
        self.crf = CRFRNN(num_classes)
        self.factors = factors

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits."""
        scores = self.fcn(images)  # [N, C, H, W]
        refined: Tensor = self.crf(scores, colours(images))  # [N, C, H, W]
        return refined

    def loss(self, images: Tensor, labels: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`criterion(logits, labels)` behind the CRF."""
        return criterion(self(images), labels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: the net as it is, then the CRF."""
        return [*self.fcn.parameter_groups(), *self.crf.parameter_groups(self.factors)]

    def start_from(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load in place the weights of a trained FCN-8s, as the paper does; the CRF starts as it is."""
        self.fcn.start_from(state_dict)

    def load_imagenet(self, weights: Weights = "VGG16_Weights.IMAGENET1K_V1") -> None:
        """Start the net from a VGG-16 trained on ImageNet."""
        self.fcn.load_imagenet(weights)


def colours(images: Tensor) -> Tensor:
    """Undo `normalize`: RGB from 0 to 255, which the CRF's bandwidths are meant for. `[N, 3, H, W] -> [N, 3, H, W]`."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) * 255 for values in (MEAN, STD))
    return images * std + mean


def paper(num_classes: int) -> FCNCRF:
    """On the paper's FCN-8s: 134 million parameters."""
    return FCNCRF(fcn.paper(num_classes, stride=8), num_classes, factors=(1e4, 1e3))


def laptop(num_classes: int) -> FCNCRF:
    """On the laptop's FCN-8s: 1.9 million parameters."""
    return FCNCRF(fcn.laptop(num_classes, stride=8), num_classes, factors=(1.0, 1.0))
