"""The networks: sizes of BagNet by the paper, and what an output of it sees."""

from __future__ import annotations

import pytest
import torch

from t2ikit.classify.bagnet import BagNet
from t2ikit.classify.networks import NETWORKS, build_network


@pytest.mark.parametrize(("patch", "millions", "side"), [(9, 14.05, 15), (17, 14.57, 14), (33, 16.67, 12)])
def test_bagnet_has_the_size_of_the_paper(patch: int, millions: float, side: int) -> None:
    network = BagNet(patch, 200)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions
    assert network.eval().maps(torch.zeros(1, 3, 128, 128)).shape == (1, 2048, side, side)
    names = network.state_dict()
    assert {"conv1.weight", "conv2.weight", "bn1.running_mean", "layer1.0.downsample.0.weight", "fc.weight"} <= set(
        names
    )
    assert names["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert names["layer4.2.bn3.weight"].shape == (2048,)


def test_an_output_of_bagnet_sees_its_patch_only() -> None:
    torch.manual_seed(0)
    for patch in (9, 17, 33):
        network = BagNet(patch, 5).eval()
        x = torch.randn(1, 3, 64, 64, requires_grad=True)
        network.maps(x)[0, :, 1, 1].sum().backward()
        seen = (x.grad[0].abs().sum(0) > 0).nonzero()
        height, width = (seen.amax(0) - seen.amin(0) + 1).tolist()
        assert height <= patch and width <= patch and max(height, width) > patch - 9, (patch, height, width)


def test_bagnet_s_weights_are_he_s_by_fan_out() -> None:
    torch.manual_seed(0)
    weight = BagNet(33, 5).layer3[0].conv2.weight.detach()  # type: ignore[index,union-attr]
    assert abs(float(weight.std()) / (2 / (256 * 9)) ** 0.5 - 1) < 0.01


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_an_output_a_class(name: str) -> None:
    with torch.device("meta"):
        network = build_network(name, 200, 224)
    assert sum(p.numel() for p in network.parameters()) > 300_000
    last = [p for p in network.parameters() if p.dim() == 1][-1]
    assert last.shape == (200,)


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no network 'resnet51'; nearest known: 'resnet50'"):
        build_network("resnet51", 200, 224)
    with pytest.raises(ValueError, match="multiple of 16"):
        build_network("vit_tiny", 200, 100)
