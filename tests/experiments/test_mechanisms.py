"""Claims that are run again run through, at a size that says nothing of them."""

import math

import pytest

from experiments.mechanisms import e01_obd, e02_obs, e13_ssl, fidelity_curvature, p33_struct_admm


def finite(row, *names):
    return all(math.isfinite(row[name]) for name in names)


def test_e01_has_a_row_an_arm():
    found = e01_obd.main(e01_obd.Settings(smoke=True))
    assert [row["arm"] for row in found] == ["dense", *e01_obd.STYLES, "obd_iterative"]
    assert [row["kept"] for row in found] == [1.0, *[0.8] * 5, 0.7]
    assert all(finite(row, "loss", "accuracy") for row in found)
    assert all((row["predicted"] is not None) == (row["arm"][:4] in ("obd", "obd_"))
               or row["arm"] == "obd_iterative" for row in found)  # fmt: skip


def test_e02_has_a_row_a_method():
    found = e02_obs.main(e02_obs.Settings(smoke=True))
    assert [row["arm"] for row in found] == list(e02_obs.METHODS)
    for row in found:
        assert (row["weights"], len(row["losses"][0])) == (9, 9)
        assert 0 <= row["removed"][0] < 9
        assert row["losses"][0][0] == pytest.approx(found[0]["losses"][0][0])  # the same net
    obs, obd, magnitude = (row["losses"][0][1] for row in found)
    assert obs <= min(obd, magnitude)


@pytest.mark.slow
def test_fidelity_has_a_row_a_criterion():
    found = fidelity_curvature.main(fidelity_curvature.Settings(smoke=True))
    assert [row["arm"] for row in found] == list(fidelity_curvature.CRITERIA)
    assert all(finite(row, "rank", "within", "sets") for row in found)
    assert len({tuple(row["measured"]) for row in found}) == 1
    assert {len(row["predicted"]) for row in found} == {len(found[0]["measured"])}


@pytest.mark.slow
def test_e13_has_a_row_a_net():
    found = e13_ssl.main(e13_ssl.Settings(smoke=True))
    arms = [(row["net"], row["arm"]) for row in found]
    assert arms[:2] == [("lenet300", "dense"), ("lenet300", "prox")]
    assert arms[-2:] == [("resnet8", "dense"), ("resnet8", "prox")]
    assert all(0 <= row["zeros"] <= 1 and 0 <= row["accuracy"] <= 1 for row in found)


@pytest.mark.slow
def test_p33_has_a_row_a_net():
    found = p33_struct_admm.main(p33_struct_admm.Settings(smoke=True))
    pairs = [("P33a", "admm"), ("P33a", "magnitude"), ("P33b", "admm"), ("P33b", "magnitude")]
    assert [(row["part"], row["arm"]) for row in found] == [("dense", "dense"), *pairs]
    assert all(row["law"] < 1e-4 and row["density"] < 0.6 for row in found[1:])
