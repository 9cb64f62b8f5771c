"""What every model promises, for each name in `models.names()`."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seglearn import models
from seglearn.errors import InputError

NAMES = models.names()


def criterion(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels.long(), ignore_index=11)


def laptop(name: str) -> models.Model:
    torch.manual_seed(0)
    return models.create(name, 11, "laptop")


def test_names() -> None:
    assert NAMES == ["fcn32s", "fcn16s", "fcn8s"]


def test_unknown_names_and_sizes_are_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="'fcn8': did you mean 'fcn8s'.*fcn32s, fcn16s, fcn8s"):
        models.create("fcn8", 11)
    with pytest.raises(InputError, match="'FCN-16s': did you mean 'fcn16s'"):
        models.create("FCN-16s", 11)
    with pytest.raises(InputError, match="'labtop': did you mean 'laptop'.*paper, laptop"):
        models.create("fcn8s", 11, "labtop")
    with pytest.raises(InputError, match="num_classes is 1"):
        models.create("fcn8s", 1)


@pytest.mark.parametrize("size", ["paper", "laptop"])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_in_gives_the_same_size_out(name: str, size: str) -> None:
    with torch.device("meta"):
        model = models.create(name, 11, size)
        for height, width in ((1, 1), (1, 600), (224, 224), (500, 500), (360, 480), (181, 241), (33, 31)):
            for mode in (True, False):
                logits = model.train(mode)(torch.empty(2, 3, height, width))
                assert logits.shape == (2, 11, height, width)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 7, 130), (3, 3, 65, 33), (1, 3, 96, 128)])
@torch.no_grad()
def test_logits_are_float32_of_the_images_size(name: str, shape: tuple[int, ...]) -> None:
    logits = laptop(name).eval()(torch.randn(shape))
    assert logits.shape == (shape[0], 11, *shape[2:])
    assert logits.dtype == torch.float32 and logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_train_and_eval_return_the_same_type(name: str) -> None:
    model, images = laptop(name), torch.randn(1, 3, 64, 64)
    results = [model.train(mode)(images) for mode in (True, False)]
    assert type(results[0]) is type(results[1]) is Tensor
    assert results[0].shape == results[1].shape and results[0].dtype == results[1].dtype


@pytest.mark.parametrize("name", NAMES)
def test_laptop_size_is_small(name: str) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in models.create(name, 11, "laptop").parameters()) <= 2_000_000


@pytest.mark.parametrize("size", ["paper", "laptop"])
@pytest.mark.parametrize("name", NAMES)
def test_parameter_groups_hold_each_parameter_once(name: str, size: str) -> None:
    with torch.device("meta"):
        model = models.create(name, 11, size)
    groups = model.parameter_groups()
    assert all(set(group) == {"params", "lr_factor", "weight_decay_factor"} for group in groups)
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters() if p.requires_grad}
    # norms and biases are vectors: nothing but weights of two and more dimensions decays
    assert all((p.ndim > 1) == (group["weight_decay_factor"] > 0) for group in groups for p in group["params"])


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_learn(name: str) -> None:
    """Two halves of two brightnesses, some of it void: the loss falls, and the prediction is right."""
    model = laptop(name)
    labels = torch.zeros(2, 48, 64, dtype=torch.uint8)
    labels[:, :, 32:] = 1
    images = torch.randn(2, 3, 48, 64) * 0.1 + labels[:, None]
    labels[:, :4] = 11
    optimiser = torch.optim.SGD(
        [{"params": g["params"], "lr": 0.02 * g["lr_factor"]} for g in model.parameter_groups()], momentum=0.9
    )
    losses = []
    for _ in range(15):
        loss = model.loss(images, labels, criterion)
        assert loss.ndim == 0
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    valid = labels != 11
    assert (model(images).argmax(1) == labels)[valid].float().mean() > 0.85


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = laptop(name)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight)  # layers that start at zero pass nothing on in the first step
    labels = torch.randint(0, 11, (2, 96, 96), dtype=torch.uint8)
    model.loss(torch.randn(2, 3, 96, 96), labels, criterion).backward()
    for key, parameter in model.named_parameters():
        # not None, even where it is (all but) zero: a bias before a norm has no effect
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_copies_and_reloads_are_equal(name: str) -> None:
    model, images = settled(name), torch.randn(1, 3, 48, 80)
    expected = model(images)
    assert expected.std() > 0
    assert torch.equal(copy.deepcopy(model)(images), expected)
    other = models.create(name, 11, "laptop").eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images), expected)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_channels_last_gives_the_same_logits(name: str) -> None:
    model, images = settled(name), torch.randn(2, 3, 75, 90)
    expected = model(images)
    model = model.to(memory_format=torch.channels_last)
    logits = model(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_trains(name: str) -> None:
    model, images = settled(name), torch.randn(2, 3, 75, 90)
    with torch.no_grad():
        expected = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(images)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().mean() < 0.05 * expected.abs().mean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train().loss(images, torch.zeros(2, 75, 90, dtype=torch.uint8), criterion)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def settled(name: str) -> models.Model:
    """A model in evaluation mode whose scores are not zero."""
    model = laptop(name).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight, 0, 0.1)
    return model
