"""One spectrum for all windows against one factorisation each, and both against plain algebra."""

import pytest
import torch
from dense import EXACT

from eve_pyro.distributions.precision import Dense, Spectral

B, M, L = 3, 6, 2
KINDS = ["full", "deficient", "repeated", "zero"]
LOOSE = {"rtol": 1e-6, "atol": 1e-7}


def root_of(kind):
    """The root A of a shared matrix A'A: of full rank, with more units than steps, orthonormal, or zero."""
    if kind == "zero":
        return torch.zeros(4, M).double()
    if kind == "repeated":
        return 1.5 * torch.linalg.qr(torch.randn(M, M).double()).Q
    return torch.randn(3 if kind == "deficient" else M + 2, M).double()


def strengths():
    return torch.tensor([0.3, 1.0, 7.0]).double()


def matrix_of(shared, strength):
    return torch.eye(M).to(shared) + strength[:, None, None] * shared


def diagonal(matrix, size):
    """The blocks on the diagonal, one by one."""
    return torch.stack([matrix[:, i : i + size, i : i + size] for i in range(0, M, size)], 1)


def plain(shared, strength, vectors, size):
    """What a precision answers, by ``torch.linalg.inv``."""
    matrix = matrix_of(shared, strength)
    inverse = torch.linalg.inv(matrix)
    return {
        "solve": torch.einsum("bij,...bj->...bi", inverse, vectors),
        "times": torch.einsum("bij,...bj->...bi", matrix, vectors),
        "log_det": torch.logdet(matrix),
        "blocks": diagonal(matrix, size),
        "inverse_blocks": diagonal(inverse, size),
    }


def answers(precision, vectors, size):
    return {
        "solve": precision.solve(vectors),
        "times": precision.times(vectors),
        "log_det": precision.log_det,
        "blocks": precision.blocks(size),
        "inverse_blocks": precision.inverse_blocks(size),
    }


def gradients(value, leaves):
    return torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_and_their_gradients_are_plain_algebra(kind, size):
    leaves = root_of(kind), strengths(), torch.randn(L, B, M).double()
    root, strength, vectors = (leaf.requires_grad_() for leaf in leaves)
    shared = root.mT @ root
    expected = plain(shared, strength, vectors, size)
    weights = {name: torch.randn_like(value) for name, value in expected.items()}
    for precision in (Spectral(shared, strength), Dense(matrix_of(shared, strength))):
        found = answers(precision, vectors, size)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, **EXACT, msg=name)
            ours, theirs = (gradients((weights[name] * each).sum(), leaves) for each in (found[name], value))
            torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shared_matrix_gets_the_gradient_of_any_symmetric_change(kind):
    """Also of one that tells equal eigenvalues, or those of zero, apart."""
    free = torch.zeros(M, M).double().requires_grad_()
    root = root_of(kind)
    shared = root.mT @ root + 0.5 * (free + free.mT)
    vectors = torch.randn(B, M).double()
    found = answers(Spectral(shared, strengths()), vectors, 2)
    for name, value in plain(shared, strengths(), vectors, 2).items():
        weights = torch.randn_like(value)
        ours, theirs = (gradients((weights * each).sum(), free) for each in (found[name], value))
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-7, 1e-9, 1e-12])
def test_eigenvalues_close_to_one_another_cost_no_digits(gap):
    free = torch.zeros(M, M).double().requires_grad_()
    basis = torch.linalg.qr(torch.randn(M, M).double()).Q
    shared = basis * torch.tensor([1.0, 1 + gap, 1 + 2 * gap, 3.0, gap, 0.0]).double() @ basis.mT
    shared = shared + 0.5 * (free + free.mT)
    weights = torch.randn(B, 3, 2, 2).double()
    exact = plain(shared, strengths(), torch.ones(B, M).double(), 2)["inverse_blocks"]
    found, expected = (
        gradients((weights * each).sum(), free) for each in (Spectral(shared, strengths()).inverse_blocks(2), exact)
    )
    torch.testing.assert_close(found, expected, **LOOSE)


@pytest.mark.parametrize("form", [Spectral, Dense])
@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_inverse_as_covariance_and_expectations_its_gradient(form, kind):
    """Shocks that stand for a standard normal's second moments exactly leave no Monte-Carlo error."""
    root, strength = root_of(kind).requires_grad_(), strengths().requires_grad_()
    shared = root.mT @ root
    precision = Spectral(shared, strength) if form is Spectral else Dense(matrix_of(shared, strength))
    shocks = torch.cat([torch.eye(M), -torch.eye(M)]).double() * M**0.5  # (2 M, M): mean 0, covariance I
    draws = precision.draw(shocks.unsqueeze(1).expand(-1, B, -1))
    inverse = torch.linalg.inv(matrix_of(shared, strength))
    covariance = torch.einsum("sbi,sbj->bij", draws, draws) / len(shocks)
    torch.testing.assert_close(covariance, inverse, **EXACT)
    torch.testing.assert_close(draws.mean(0), torch.zeros(B, M).double(), **EXACT)
    weights = torch.randn(B, M, M).double()
    found, expected = (gradients((weights * each).sum(), (root, strength)) for each in (covariance, inverse))
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("form", [Spectral, Dense])
def test_gradients_of_other_expectations_are_right_within_monte_carlo_error(form):
    """E cos(w x) = exp(-w' Lambda^-1 w / 2), which second moments alone do not settle."""
    root, strength, count = root_of("deficient").requires_grad_(), strengths().requires_grad_(), 200_000
    shared = root.mT @ root
    precision = Spectral(shared, strength) if form is Spectral else Dense(matrix_of(shared, strength))
    w = torch.tensor([0.7, -0.5, 1.0, 0.3, -0.8, 0.4]).double()
    drawn = (precision.draw(torch.randn(count, B, M).double()) @ w).cos()
    exact = (-0.5 * torch.einsum("i,bij,j->b", w, torch.linalg.inv(matrix_of(shared, strength)), w)).exp()
    torch.testing.assert_close(drawn.mean(0), exact, atol=5 / count**0.5, rtol=0)
    found, expected = (gradients(each.sum(), (root, strength)) for each in (drawn.mean(0), exact))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=6 / count**0.5, rtol=0)


@pytest.mark.parametrize("form", [Spectral, Dense])
def test_single_precision_stays_single_and_keeps_its_digits(form):
    root = torch.randn(4, 24)
    strength = torch.tensor([0.3, 1.0, 7.0])
    shared = (root.mT @ root).requires_grad_()

    def make(shared, strength):
        matrix = torch.eye(24).to(shared) + strength[:, None, None] * shared
        return Spectral(shared, strength) if form is Spectral else Dense(matrix)

    vectors = torch.randn(L, B, 24)
    ours, theirs = (
        answers(make(shared.to(kind), strength.to(kind)), vectors.to(kind), 3)
        for kind in (torch.float32, torch.float64)
    )
    for name, value in ours.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), theirs[name], rtol=1e-4, atol=1e-4, msg=name)
        found, expected = (gradients(each[name].sum(), shared) for each in (ours, theirs))
        scale = float(expected[0].abs().max())
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=2e-4 * scale, msg=name)
