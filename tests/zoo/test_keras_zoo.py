"""Classifiers of keras.applications: all their units, and the law. `make zoos` has every net."""

import pytest

from experiments.keras_nets import build
from experiments.zoos import BOUND, UNITS, law, random_masks, timed_trace

# MobileNetV2 by hand: stem, expansion of every block, stream of every stage, last convolution.
EXPANDED = (96, 144, 144, 192, 192, 192, 384, 384, 384, 384, 576, 576, 576, 960, 960, 960)
STREAMS = (16, 24, 32, 64, 96, 160, 320)
MOBILENET_V2 = 32 + sum(EXPANDED) + sum(STREAMS) + 1280

NETS = ("ResNet50", "VGG16", "NASNetMobile", "EfficientNetB0", "InceptionV3")


@pytest.mark.parametrize(
    ("name", "units"), [("MobileNetV2", MOBILENET_V2), *((name, UNITS[name]) for name in NETS)]
)
def test_masked_equals_slim(name, units):
    net = build(name, side=32)
    groups, _ = timed_trace(net)
    assert sum(groups.sizes.values()) >= units
    error, control = law(net, groups, random_masks(groups, 0), seed=0)
    assert error <= BOUND
    assert control > BOUND
