"""The decay of residual sizes: known laws are recovered, others are not claimed."""

import numpy as np
import pytest

from checker import unchecked
from optdepth.errors import InputError
from optdepth.stopping.decay import Decay, decay

DEPTHS = np.arange(1, 13)


def sizes_of(name: str, amplitude: float, rate: float, seed: int, depths: np.ndarray = DEPTHS) -> np.ndarray:
    """Sizes of 200 samples whose largest follows the law, up to noise in every size."""
    law = amplitude * (rate**depths if name == "geometric" else depths**-rate)
    random = np.random.default_rng(seed)
    share = random.uniform(0.2, 1.0, (200, 1)) * random.lognormal(0, 0.1, (200, len(depths)))
    return share * law


def fitted(sizes: np.ndarray, depths: np.ndarray = DEPTHS) -> Decay:
    found = decay(sizes, depths)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "amplitude", "rate"),
    [
        ("geometric", 2.0, 0.5),
        ("geometric", 0.3, 0.8),
        ("geometric", 5.0, 0.9),
        ("power", 2.0, 0.5),
        ("power", 0.7, 2.0),
    ],
)
def test_a_known_law_is_recovered(name: str, amplitude: float, rate: float) -> None:
    covered = 0
    for seed in range(40):
        found = fitted(sizes_of(name, amplitude, rate, seed))
        law = found.law
        assert law is not None
        assert law.name == name
        assert found.clear
        assert law.rate == pytest.approx(rate, rel=0.1)
        assert law.amplitude == pytest.approx(1.2 * amplitude, rel=0.2)  # 1.2: the noise's part in the largest
        covered += law.interval[0] <= rate <= law.interval[1]
    assert covered >= 32  # 95% of 40 is 38; fewer than 32 has a chance below 0.1%


def test_an_exact_law_is_recovered_exactly() -> None:
    law = fitted(np.tile(3.0 * 0.7**DEPTHS, (5, 1))).law
    assert law is not None
    assert (law.name, law.amplitude, law.rate) == ("geometric", pytest.approx(3.0), pytest.approx(0.7))
    assert law.r2 == pytest.approx(1.0)
    assert law.depth_below(0.01) == np.ceil(np.log(0.01 / 3.0) / np.log(0.7))
    power = fitted(np.tile(3.0 * DEPTHS**-1.5, (5, 1))).law
    assert power is not None
    assert (power.name, power.amplitude, power.rate) == ("power", pytest.approx(3.0), pytest.approx(1.5))
    assert power.depth_below(0.01) == np.ceil((3.0 / 0.01) ** (1 / 1.5))
    assert power.depth_below(10.0) == 1


def test_the_cover_is_above_every_size_and_the_band_about_the_line() -> None:
    for seed in range(20):
        found = fitted(sizes_of("geometric", 2.0, 0.8, seed))
        law = found.geometric
        assert (found.largest <= law.cover * law.slowest**found.depths * (1 + 1e-9)).all()
        line = law.amplitude * law.rate**found.depths
        assert ((found.low < line) & (line < found.high)).all()


def test_sizes_that_do_not_decay_follow_neither_law() -> None:
    random = np.random.default_rng(0)
    for shape in (np.ones(12), 1.1**DEPTHS, 1 + np.sin(DEPTHS)):
        found = fitted(shape * random.uniform(0.8, 1.0, (100, 12)))
        assert found.law is None
        assert "follow neither law" in str(found)


def test_a_doubtful_choice_takes_the_law_that_promises_less() -> None:
    """Four sizes cannot tell the two apart: between them the lines differ less than from the points."""
    both = np.sqrt(0.7 ** np.arange(3, 7) * np.arange(3, 7) ** -1.5)
    found = fitted(np.tile(both, (3, 1)), np.arange(3, 7))
    assert not found.clear
    assert found.law is found.power
    assert "describes them as well" in str(found)
    assert found.power.depth_below(1e-3) >= found.geometric.depth_below(1e-3)


def test_few_depths_give_no_law_and_stages_that_add_nothing_do_not_count() -> None:
    assert decay(np.ones((5, 3)), np.arange(1, 4)) is None
    sizes = sizes_of("geometric", 2.0, 0.5, seed=0)
    sizes[:, [2, 7]] = 0.0
    found = fitted(sizes)
    assert len(found.depths) == 10
    assert found.law is not None
    assert found.law.rate == pytest.approx(0.5, rel=0.1)


def test_bad_sizes_are_named() -> None:
    sizes = np.ones((5, 4))
    sizes[3, 2] = np.nan
    with pytest.raises(InputError, match="residual size of sample 3 at depth 12 is nan"):
        decay(sizes, np.arange(10, 14))
    with unchecked(), pytest.raises(InputError, match=r"got shape \(5, 4\)"):
        decay(sizes, np.arange(3))
