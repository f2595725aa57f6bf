"""The regressors: one contract, functions on tensors that equal the basis' own, and each basis where it is needed."""

import numpy as np
import pytest
import torch

from optdepth.stopping.regression import CrossFit, Function, Hinges, Ramps, Regression, bases, restored

SAMPLES = 4_000


def observed(features: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (SAMPLES, features)).astype(np.float32)


@pytest.mark.parametrize("features", [1, 2, 6])
def test_a_fitted_function_is_its_basis_times_its_coefficients_and_survives_being_taken_apart(features: int) -> None:
    seen = observed(features)
    for basis in bases(seen, seed=0):
        columns = basis(torch.from_numpy(seen))
        assert (columns[:, 0] == 1).all()
        coefficients = np.random.default_rng(1).normal(size=columns.shape[1])
        function = basis.function(coefficients)
        expected = columns.double() @ torch.from_numpy(coefficients)
        torch.testing.assert_close(function(torch.from_numpy(seen)).double(), expected, rtol=1e-4, atol=1e-4)
        alone = torch.tensor([function.at(row) for row in seen[:50].tolist()], dtype=torch.float64)
        torch.testing.assert_close(alone, expected[:50], rtol=1e-4, atol=1e-4)
        held = {f"3.{name}": value for name, value in function.arguments().items()}
        back = restored(type(function).__name__, "3.", {"30.low": torch.zeros(1), **held})
        assert torch.equal(back(torch.from_numpy(seen)), function(torch.from_numpy(seen)))
        assert type(function) in Function.kinds.values()


@pytest.mark.parametrize("make", [lambda x: Ramps.of(x, 8), lambda x: Hinges.of(x, 64, 0)], ids=["ramps", "hinges"])
def test_nothing_is_extrapolated(make) -> None:
    seen = observed(2)
    basis = make(seen)
    corner = torch.from_numpy(np.stack([seen.max(axis=0), seen.min(axis=0)]))
    torch.testing.assert_close(basis(corner), basis(100 * corner))


def test_a_cross_fit_equals_ridge_regressions_without_each_fold() -> None:
    seen, noise = observed(2), np.random.default_rng(1).normal(size=SAMPLES)
    target = seen[:, 0] ** 2 + noise
    ramps = Ramps.of(seen, 4)
    fit = CrossFit(ramps, seen, folds=4).fit(target)
    columns = ramps(torch.from_numpy(seen).double()).numpy()
    fold = np.arange(4).repeat(SAMPLES // 4)
    errors = []
    for ridge in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        penalty = np.diag(np.r_[0.0, np.full(8, ridge * np.square(columns).sum() / 9)])
        predicted = np.empty(SAMPLES)
        for f in range(4):
            kept = columns[fold != f]
            predicted[fold == f] = columns[fold == f] @ np.linalg.solve(
                kept.T @ kept + penalty, kept.T @ target[fold != f]
            )
        errors.append((np.square(predicted - target).mean(), ridge, predicted))
    _, ridge, predicted = min(errors, key=lambda found: found[0])
    np.testing.assert_allclose(fit.predicted, predicted, atol=1e-4)
    assert fit.error**2 == pytest.approx(np.square(predicted - target).mean(), rel=1e-5)
    penalty = np.diag(np.r_[0.0, np.full(8, ridge * np.square(columns).sum() / 9)])
    whole = np.linalg.solve(columns.T @ columns + penalty, columns.T @ target)
    np.testing.assert_allclose(columns @ fit.coefficients, columns @ whole, atol=1e-4)


def test_predictions_do_not_see_their_own_fold() -> None:
    seen, target = observed(2), np.random.default_rng(1).normal(size=SAMPLES)
    block = slice(SAMPLES // 5, 2 * SAMPLES // 5)
    changed = target.copy()
    changed[block] = changed[block][::-1]
    fit = CrossFit(Ramps.of(seen, 8), seen)
    first, second = fit.fit(target).predicted, fit.fit(changed).predicted
    np.testing.assert_allclose(first[block], second[block], atol=1e-5)
    assert not np.allclose(first, second, atol=1e-3)


def test_each_basis_is_taken_where_it_is_needed() -> None:
    """Valleys of one feature need fine ramps, features that act together need hinges, and a straight line neither."""
    random = np.random.default_rng(2)
    one, two = observed(1), observed(2)
    for seen, target, share in (
        (one, np.cos(20 * one[:, 0]), 0.02),
        (two, two[:, 0] * two[:, 1], 0.05),
        (two, two.sum(axis=1), 0.001),
    ):
        fit = Regression(seen, bases(seen, seed=0)).fit(target + 0.1 * random.normal(size=SAMPLES))
        left = np.square(fit.function()(torch.from_numpy(seen)).numpy() - target).mean()
        assert left <= share * target.var()
    assert isinstance(Regression(two, bases(two, seed=0)).fit(two[:, 0] * two[:, 1]).basis, Hinges)


def test_a_feature_that_never_varies_does_no_harm() -> None:
    seen = np.concatenate([observed(1), np.full((SAMPLES, 1), 7.0, dtype=np.float32)], axis=1)
    fit = Regression(seen, bases(seen, seed=0)).fit(np.abs(seen[:, 0].astype(float)))
    assert fit.error**2 < 1e-3
    assert np.isfinite(fit.function()(torch.tensor([[0.5, -100.0]])).numpy()).all()
