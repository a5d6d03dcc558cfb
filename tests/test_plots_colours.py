"""Colours of variants are told apart by colour-blind eyes: simulated here by the matrices of Machado et al. 2009.

Source: Machado, Oliveira, Fernandes, IEEE TVCG 15(6), table of severity 1.0, on linear RGB. Distances are CIE 1976.
"""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from hae_lab.plots.base import CLAIM_COLOUR, PALETTE, VARIANT_CYCLE
from hae_lab.plots.compute import RULE_COLOURS

LEAST = 20  # of the distance between any two; 2.3 is just noticed side by side
REGISTERED, DRAWN = 4, 6  # variants of the project, and with two of a user's
EYES = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}
TO_XYZ = np.array([[0.41246, 0.35758, 0.18044], [0.21267, 0.71515, 0.07218], [0.01933, 0.11919, 0.95030]])
WHITE = TO_XYZ.sum(axis=1)


def lab(colour: str, eyes: str = "usual") -> np.ndarray:
    """CIE L*a*b* of a colour, as some eyes see it."""
    coded = np.array(to_rgb(colour))
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(EYES[eyes]) @ linear, 0, 1)
    shares = TO_XYZ @ seen / WHITE
    x, y, z = np.where(shares > (6 / 29) ** 3, np.cbrt(shares), shares / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one: str, other: str, eyes: str) -> float:
    return float(np.linalg.norm(lab(one, eyes) - lab(other, eyes)))


def test_the_measure_itself():
    assert lab("white") == pytest.approx([100, 0, 0], abs=1e-3)
    assert lab("#ff0000") == pytest.approx([53.24, 80.09, 67.20], abs=0.02)  # as published for sRGB
    greys = [distance("#808080", "#808080", eyes) for eyes in EYES]
    assert greys == [0, 0, 0]
    assert lab("#777777", "deuteranopia") == pytest.approx(lab("#777777"), abs=0.01)  # greys stay what they are
    assert distance(PALETTE[7], PALETTE[2], "deuteranopia") == pytest.approx(11, abs=0.5)  # why the control is darker


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("count", [REGISTERED, DRAWN])
def test_variants_are_apart_in_all_eyes(eyes, count):
    near = {pair: distance(*pair, eyes) for pair in combinations(VARIANT_CYCLE[:count], 2)}
    assert {pair: far for pair, far in near.items() if far < LEAST} == {}


def test_rules_have_colours_of_their_own_and_the_one_that_hides_nothing_is_grey():
    assert len(set(RULE_COLOURS.values())) == len(RULE_COLOURS)
    greys = [rule for rule, colour in RULE_COLOURS.items() if np.ptp(to_rgb(colour)) == 0]
    assert greys == ["dense"]


@pytest.mark.parametrize("eyes", EYES)
def test_a_claim_is_apart_from_every_bar(eyes):
    assert min(distance(CLAIM_COLOUR, colour, eyes) for colour in VARIANT_CYCLE[:DRAWN]) >= LEAST
