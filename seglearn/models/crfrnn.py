"""CRF-RNN on FCN-8s: a network that ends in a CRF (Zheng, Jayasumana, Romera-Paredes et al. 2015, arXiv 1502.03240).

FCN-8s gives scores, rounds of mean field sharpen them along the image's edges (`seglearn.crf.rnn`), and the loss behind
both trains both: the net learns scores that the CRF can use.

Chapter: book/ideas/crf.

Differs from the paper:
    - upsampling in FCN-8s is fixed, see `seglearn.models.fcn`. 134 364 074 parameters at 21 classes;
    - laptop size: the laptop's FCN-8s, and one learning rate for all. The release's factors of 10 000 and 1 000 balance
      a rate of 1e-13 and a loss summed over pixels; Adam takes steps of one size whatever the gradient's.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seglearn.backbones import VGG
from seglearn.crf.rnn import CRFRNN
from seglearn.data.transforms import MEAN, STD
from seglearn.models import fcn
from seglearn.models.layers import parameter_groups


class FCNCRF(fcn.FCN):
    """FCN-8s and the layer on top, for every height and width from 1 pixel on. 5 rounds in training, 10 at test.

    Its weights are those of an FCN-8s, under the same names, and three matrices under `crf`. So a checkpoint of an
    FCN-8s is a start for it, as in the paper.

    Args:
        num_classes: number of classes, C in the shapes below.
        factors: learning rates of the CRF's kernel weights and of its compatibility, relative to the net's.
        net: of which size, see `fcn.FCN`.
    """

    def __init__(self, num_classes: int, factors: tuple[float, float], **net: Any) -> None:
        super().__init__(num_classes, stride=8, **net)
        self.crf = CRFRNN(num_classes)
        self.factors = factors

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, H, W]` normalised images -> `[N, C, H, W]` logits; the loss is taken behind the CRF."""
        scores = super().forward(images)  # [N, C, H, W]
        refined: Tensor = self.crf(scores, colours(images))  # [N, C, H, W]
        return refined

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: the net as FCN-8s has it, then the CRF."""
        net = {module: 1.0 for module in self.children() if module is not self.crf}
        return [*parameter_groups(net, bias_factor=2.0), *self.crf.parameter_groups(self.factors)]

    def start_from(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load in place the weights of a trained FCN-8s, as the paper does; the CRF stays as it is.

        Raises:
            InputError: the weights of another net, or of another number of classes.
        """
        crf = {f"crf.{name}": weight for name, weight in self.crf.state_dict().items()}
        super().start_from({**crf, **state_dict})


def colours(images: Tensor) -> Tensor:
    """Undo `normalize`: RGB from 0 to 255, which the CRF's bandwidths are meant for. `[N, 3, H, W] -> [N, 3, H, W]`.

    Rounded to the whole numbers that they were, so that the CRF sees the image to the last bit.
    """
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) * 255 for values in (MEAN, STD))
    return (images * std + mean).round()


def paper(num_classes: int) -> FCNCRF:
    """On the paper's FCN-8s: 134 million parameters."""
    return FCNCRF(num_classes, factors=(1e4, 1e3))


def laptop(num_classes: int) -> FCNCRF:
    """On the laptop's FCN-8s: 1.9 million parameters."""
    backbone = VGG(widths=(16, 32, 64, 128, 192), batch_norm=True, num_classes=None, ceil_mode=True)
    return FCNCRF(
        num_classes, factors=(1.0, 1.0), backbone=backbone, hidden=256, fc6=(3, 1), dropout=0.1, batch_norm=True
    )
