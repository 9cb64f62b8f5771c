"""Cross-entropy: torch's value and gradient where torch's is defined, 0 where it is NaN."""

import pytest
import torch
import torch.nn.functional as F

from seglearn.losses import cross_entropy


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [255, 5, -1])
def test_value_and_gradient_equal_torch(ignore_index: int, weighted: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, 9, generator=rng, requires_grad=True)
    label = torch.randint(0, 5, (2, 7, 9), generator=rng)
    label[torch.rand(label.shape, generator=rng) < 0.3] = ignore_index
    weight = torch.rand(5, generator=rng) + 0.1 if weighted else None
    ours = cross_entropy(logits, label, ignore_index, weight)
    (gradient,) = torch.autograd.grad(ours, logits)
    theirs = F.cross_entropy(logits, label, weight, ignore_index=ignore_index)
    (expected,) = torch.autograd.grad(theirs, logits)
    assert torch.allclose(ours, theirs, atol=1e-6) and torch.allclose(gradient, expected, atol=1e-7)


@pytest.mark.parametrize("weight", [None, torch.ones(3)])
def test_all_void_is_zero_with_zero_gradient(weight: torch.Tensor | None) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 4, 4), 11, dtype=torch.uint8), 11, weight)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and (logits.grad == 0).all()


def test_uint8_labels_bfloat16_logits_and_untouched_arguments() -> None:
    logits = torch.randn(1, 3, 4, 4).bfloat16()
    label = torch.randint(0, 4, (1, 4, 4), dtype=torch.uint8)
    before = label.clone()
    loss = cross_entropy(logits, label, 3)
    assert loss.dtype == torch.float32 and torch.equal(label, before)
    assert torch.allclose(loss, cross_entropy(logits.float(), label, 3))
