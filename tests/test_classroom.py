"""What chapters share: the same pictures for every net, a short training that learns, shipped nets that label."""

import pytest
import torch

from seglearn import classroom, weights


def test_fit_learns_and_treats_two_nets_alike() -> None:
    images, labels = classroom.streets("train", 4, (48, 64))
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 48, 64) and labels.shape == (4, 48, 64)
    fresh = classroom.create("fcn8s")
    before = classroom.score(fresh.eval(), images, labels).miou
    one = classroom.fit(classroom.create("fcn8s"), images, labels, 12, batch_size=2)
    two = classroom.fit(classroom.create("fcn8s"), images, labels, 12, batch_size=2)
    assert not one.training
    assert classroom.score(one, images, labels).miou > before
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_fit_leaves_frozen_norms_alone() -> None:
    from seglearn.training.modes import freeze

    images, labels = classroom.streets("train", 2, (48, 64))
    net = classroom.create("dilation")
    freeze(net, ["front_end"])
    before = {name: value.clone() for name, value in net.front_end.state_dict().items()}
    classroom.fit(net, images, labels, 2, batch_size=2)
    assert all(torch.equal(before[name], value) for name, value in net.front_end.state_dict().items())


def test_shipped_nets_label_streets(capsys: pytest.CaptureFixture[str]) -> None:
    nets = classroom.shipped(["pspnet", "nothing"])
    assert list(nets) == ["pspnet"] and "no weights of nothing" in capsys.readouterr().out
    images, labels = classroom.streets("val", 4, (180, 240))
    found = classroom.score(nets["pspnet"], images, labels)
    assert found.miou > 0.45  # on streets that it has never seen
    panels = classroom.panels(nets, images[0], labels[0])
    assert list(panels) == ["street", "truth", "pspnet"] and panels["pspnet"].shape == (180, 240)
    assert "pspnet" in classroom.table({"pspnet": found})


@pytest.mark.parametrize("name", weights.names("scenes"))
def test_every_net_trained_on_streets_knows_streets(name: str) -> None:
    """Most pixels are right: weights that were shipped by accident would not label so."""
    images, labels = classroom.streets("val", 3, (180, 240))
    assert classroom.score(classroom.shipped([name])[name], images, labels).pixel_accuracy > 0.7
