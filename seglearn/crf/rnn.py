"""CRF-RNN: mean field as a recurrent layer (Zheng, Jayasumana, Romera-Paredes et al. 2015, arXiv 1502.03240).

Each round of mean field is made of things that networks have: a filter whose weights follow from the image, a 1x1
convolution over classes, a sum, a softmax. So the rounds can be unrolled, and gradients go through all of them: to the
scores that came in, and to the weights of the CRF itself, which need no search then.

Chapter: book/ideas/crf.

Differs from the paper:
    - none known in the layer. The bandwidths are the release's, which are fixed there too; the text gives none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seglearn.crf.dense import pixel_features, position_lattice
from seglearn.crf.lattice import Lattice
from seglearn.errors import InputError


class CRFRNN(nn.Module):
    """Rounds of mean field with learned weights, 5 in training and 10 in evaluation.

    With more rounds in training, gradients vanish (section 7 of the paper). Filters are computed in float32, or float64
    for such scores, whatever autocast says; the result has the type of the scores.

    Args:
        num_classes: C in the shapes below.
        theta_alpha, theta_beta: standard deviations of the bilateral filter, in pixels and in grey values of 0 to 255.
        theta_gamma: that of the spatial filter, in pixels.
        rounds: of mean field, in training and in evaluation.

    Attributes:
        spatial, bilateral: [C, C], what class i hears of class j in the two messages. They start at 3 I and 5 I.
        compatibility: [C, C], what label i costs where the messages speak of j. It starts at -I, which is Potts.
    """

    def __init__(
        self,
        num_classes: int,
        theta_alpha: float = 160.0,
        theta_beta: float = 3.0,
        theta_gamma: float = 3.0,
        rounds: tuple[int, int] = (5, 10),
    ) -> None:
        super().__init__()
        self.theta_alpha, self.theta_beta, self.theta_gamma = theta_alpha, theta_beta, theta_gamma
        self.rounds = rounds
        self.spatial = nn.Parameter(3 * torch.eye(num_classes))
        self.bilateral = nn.Parameter(5 * torch.eye(num_classes))
        self.compatibility = nn.Parameter(-torch.eye(num_classes))

    def forward(self, scores: Tensor, images: Tensor) -> Tensor:
        """Logits before and after: `[N, C, H, W] -> [N, C, H, W]`.

        Args:
            images: [N, 3, H, W], RGB from 0 to 255, of any type. No gradient flows into them.

        Raises:
            InputError: scores and images of different sizes.
        """
        if scores.shape[::2] != images.shape[::2] or scores.shape[3] != images.shape[3] or images.shape[1] != 3:
            raise InputError(
                f"scores are {list(scores.shape)} and images {list(images.shape)}: give [N, C, H, W] and [N, 3, H, W]."
            )
        if scores.is_meta:
            return scores  # shapes only: without an image there is no lattice
        height, width = scores.shape[2:]
        dtype = torch.promote_types(scores.dtype, torch.float32)
        sigma = (self.theta_gamma,) * 2
        spatial = position_lattice(height, width, sigma, "after", dtype, images.device)
        refined = []
        with torch.autocast(scores.device.type, enabled=False):
            for unary, image in zip(scores.to(dtype), images.detach(), strict=True):
                features = pixel_features(image, (self.theta_alpha,) * 2, (self.theta_beta,) * 3, dtype)
                energy = self._mean_field(unary.flatten(1), spatial, Lattice(features, "after"))
                refined.append(energy.unflatten(1, (height, width)))
            return torch.stack(refined).to(scores.dtype)  # [N, C, H, W]

    def _mean_field(self, unary: Tensor, spatial: Lattice, bilateral: Lattice) -> Tensor:
        """Figure 1 of the paper, unrolled: `[C, H W] -> [C, H W]`."""
        weights = [weight.to(unary.dtype) for weight in (self.spatial, self.bilateral, self.compatibility)]
        energy = unary
        for _ in range(self.rounds[0] if self.training else self.rounds[1]):
            q = energy.softmax(0).t().contiguous()  # [H W, C]: filters want a pixel's classes together in memory
            message = weights[0] @ spatial.filter(q).t() + weights[1] @ bilateral.filter(q).t()  # filter, then weigh
            energy = unary - weights[2] @ message  # compatibility transform, then the unaries; softmax is next
        return energy

    def parameter_groups(self, factors: tuple[float, float] = (1e4, 1e3)) -> list[dict[str, object]]:
        """For the optimiser: rates of kernel weights and of compatibility, relative to the net's.

        Those of the release, 10 000 and 1 000, go with its rate of 1e-13 and a loss summed over pixels.
        """
        kernels, compatibility = factors
        return [
            {"params": [self.spatial, self.bilateral], "lr_factor": kernels, "weight_decay_factor": 1.0},
            {"params": [self.compatibility], "lr_factor": compatibility, "weight_decay_factor": 1.0},
        ]
