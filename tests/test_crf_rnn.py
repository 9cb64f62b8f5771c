"""CRF-RNN: mean field where nothing is learned yet, gradients, what it costs, and that it learns."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.profiler import profile

from seglearn import models
from seglearn.crf import CRFRNN, dense_crf
from seglearn.data import StreetScenes
from seglearn.data.transforms import normalize
from seglearn.errors import InputError
from seglearn.models import crfrnn
from seglearn.training.checkpoint import init_weights, save_weights


def scene(size: tuple[int, int] = (48, 64)) -> tuple[Tensor, Tensor]:
    image, label = StreetScenes("val", size=size, length=1)[0]
    return image, label.long()


def test_a_fresh_layer_is_mean_field_with_the_weights_it_starts_from() -> None:
    image, _ = scene()
    scores = 2 * torch.randn(1, 5, 48, 64, generator=torch.Generator().manual_seed(0))
    layer = CRFRNN(5)
    for training, rounds in ((True, 5), (False, 10)):
        found = layer.train(training)(scores, image[None]).softmax(1)[0]
        smoothness, appearance = {"sxy": 3.0, "compat": 3.0}, {"sxy": 160.0, "srgb": 3.0, "compat": 5.0}
        expected = dense_crf(scores[0].softmax(0), image, rounds, smoothness, appearance, "after", clip=1e-30)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_scores_and_weights(training: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    layer = CRFRNN(3).double().train(training)
    image = torch.randint(100, 130, (2, 3, 4, 5), generator=rng)
    scores = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=rng, requires_grad=True)
    names, start = zip(*layer.named_parameters(), strict=True)
    weights = [(w + 0.3 * torch.randn(3, 3, generator=rng).double()).detach().requires_grad_() for w in start]

    def run(scores: Tensor, *weights: Tensor) -> Tensor:
        result: Tensor = functional_call(layer, dict(zip(names, weights, strict=True)), (scores, image))
        return result

    assert torch.autograd.gradcheck(run, (scores, *weights))


def test_each_image_of_a_batch_for_itself() -> None:
    layer, scores = CRFRNN(4), torch.randn(2, 4, 48, 64)
    images = torch.stack([scene()[0], scene()[0].flip(2)])
    batch = layer(scores, images)
    for index in range(2):
        torch.testing.assert_close(batch[index], layer(scores[index : index + 1], images[index : index + 1])[0])


def test_type_of_the_scores_and_bfloat16() -> None:
    layer, image, scores = CRFRNN(4), scene()[0][None], torch.randn(1, 4, 48, 64).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(scores, image)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, layer(scores.float(), image).bfloat16())


def test_no_host_round_trip_inside_the_rounds() -> None:
    """What reads a value back would make a GPU wait: as often for ten rounds as for one, forward and backward."""
    image, scores = scene()[0][None], torch.randn(1, 4, 48, 64, requires_grad=True)
    CRFRNN(4)(scores, image)  # the lattice over positions is kept from here on
    counts = []
    for rounds in (1, 10):
        with profile() as profiler:
            CRFRNN(4, rounds=(rounds, rounds))(scores, image).sum().backward()
        called = {event.key: event.count for event in profiler.key_averages()}
        counts.append([called.get(f"aten::{name}", 0) for name in ("item", "_unique2", "nonzero")])
        assert called["aten::_softmax"] == rounds
    assert counts[0] == counts[1] and counts[0][1] > 0


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"\[1, 4, 8, 9\] and images \[1, 3, 9, 8\]"):
        CRFRNN(4)(torch.zeros(1, 4, 8, 9), torch.zeros(1, 3, 9, 8))


def test_parameters_and_rates_of_the_release() -> None:
    with torch.device("meta"):
        model = crfrnn.paper(21)
        assert sum(p.numel() for p in model.parameters()) == 134_364_074
        assert model(torch.empty(1, 3, 500, 375)).shape == (1, 21, 500, 375)
    factors = {id(p): group["lr_factor"] for group in model.parameter_groups() for p in group["params"]}
    assert [factors[id(p)] for p in (model.crf.spatial, model.crf.bilateral)] == [10_000, 10_000]
    assert factors[id(model.crf.compatibility)] == 1_000 and factors[id(model.fc6[0].weight)] == 1


def test_colours_are_what_was_normalised() -> None:
    image, _ = scene()
    assert torch.equal(crfrnn.colours(normalize(image)[None])[0], image.float())
    every = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(crfrnn.colours(normalize(every)), every.float())


def test_it_starts_from_a_trained_fcn8s(tmp_path: Path) -> None:
    """Through `start_from`, and through the checkpoint that a recipe's `init_from` names."""
    torch.manual_seed(0)
    net = models.create("fcn8s", 5, "laptop").eval()
    torch.nn.init.normal_(net.score_fr.weight)  # type: ignore[union-attr, arg-type]
    save_weights(tmp_path / "fcn8s.safetensors", net, {})
    image, _ = scene()
    images = normalize(image)[None]
    with torch.no_grad():
        scores = net(images)
        expected = CRFRNN(5).eval()(scores, image[None])
        assert (expected - scores).abs().max() > 0.1
        for ways in ("start_from", "init_from"):
            model = crfrnn.laptop(5).eval()
            if ways == "start_from":
                model.start_from(net.state_dict())
            else:
                left = init_weights(model, tmp_path / "fcn8s.safetensors")
                assert left == ["crf.spatial", "crf.bilateral", "crf.compatibility"]
            torch.testing.assert_close(model(images), expected, atol=1e-3, rtol=1e-4)
    with pytest.raises(InputError, match="not of this FCN"):
        crfrnn.laptop(6).start_from(net.state_dict())
    with pytest.raises(InputError, match="not of this FCN"):
        crfrnn.laptop(5).start_from(models.create("segnet_basic", 5, "laptop").state_dict())


def test_the_layer_learns_what_its_labels_want() -> None:
    """Scores are the truth under noise; learned weights lower the loss below that of the start, and of no CRF."""
    image, label = scene((96, 128))
    classes = int(label.max()) + 1
    rng = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.one_hot(label, classes).permute(2, 0, 1)[None].float()
    scores = 2 * truth + 1.5 * torch.randn(truth.shape, generator=rng)
    layer = CRFRNN(classes)
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(layer(scores, image[None]), label[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert losses[-1] < torch.nn.functional.cross_entropy(scores, label[None])
    assert not torch.equal(layer.compatibility, layer.compatibility.diag().diag())  # it has learned about pairs
