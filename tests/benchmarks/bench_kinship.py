"""Whole fits of animal models: reading, the passes of EM, and what they find.

Each line is a population: how long reading takes, a pass of the E-step with its gradient, and the
whole fit; the number of passes, the heritability that is found where 0.4 is true, and how the
breeding values are integrated. The rival is one evaluation of the marginal normal by a dense
Cholesky factor with its gradient by autograd, up to 2,000 animals. All on one thread unless
``OMP_NUM_THREADS`` says otherwise. Run it with ``make bench``.
"""

import os
import time
from typing import Any

import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.models import animal_model
from ember.models.pedigrees import Pedigree, relationship_matrix

ADDITIVE, VARIANCE = 2.0, 3.0


def main() -> None:
    """Print one line for each population."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, float64")
    print(
        f"{'reading':>9} {'pass':>10} {'fit':>8} {'passes':>6} {'h2':>5} {'rival':>10}  population"
    )
    markers = torch.randn(2_000, 6_000)
    genomic = markers @ markers.T / 6_000 + 0.05 * torch.eye(2_000)
    values = torch.linalg.cholesky(genomic) @ torch.randn(2_000)
    line("2,000 animals, a genomic matrix", records(values), relationship=genomic)
    for generations, size, sires in ((10, 200, 10), (20, 1_000, 20)):
        sire, dam = livestock(generations, size, sires)
        y = records(breeding_values(sire, dam))
        name = f"{len(y):,} animals in {generations} generations"
        if len(y) <= 2_000:
            line(f"{name}, by their matrix", y, relationship=relationship_matrix(sire, dam))
        line(f"{name}, by their pedigree", y, sire=sire, dam=dam)


def line(name: str, y: Tensor, **given: Tensor) -> None:
    """One population."""
    em = EM(animal_model, objective="mle", seed=0)
    began = time.perf_counter()
    fit = em.fit(y, **given)
    took = time.perf_counter() - began
    evidence = LogEvidence.of(fit.plan)
    began = time.perf_counter()
    rounds = 10
    for _ in range(rounds):
        evidence.statistics(fit.params)
    each = (time.perf_counter() - began) / rounds
    how = fit.plan.components[0].description
    rival = f"{1e3 * marginal(y, given['relationship']):7.0f} ms" if "relationship" in given else ""
    share = float(fit.deterministic["heritability"])
    reading = took - fit.evaluations * each
    print(
        f"{reading:7.2f} s {1e3 * each:7.2f} ms {took:6.2f} s {fit.evaluations:6d} "
        f"{share:5.2f} {rival:>10}  {name}: {how}"
    )


def marginal(y: Tensor, matrix: Tensor) -> float:
    """Seconds of the marginal log likelihood and its gradient, by a dense factor and autograd."""
    began = time.perf_counter()
    scales = torch.tensor([ADDITIVE, VARIANCE], requires_grad=True)
    covariance = scales[0] * matrix + scales[1] * torch.eye(len(y))
    fn = torch.distributions.MultivariateNormal(torch.zeros(len(y)), covariance)
    fn.log_prob(y - y.mean()).backward()
    return time.perf_counter() - began


def records(values: Tensor) -> Tensor:
    """One record of each animal."""
    noise = VARIANCE**0.5 * torch.randn(len(values))
    y: Tensor = 10.0 + ADDITIVE**0.5 * values + noise
    return y


def livestock(generations: int, size: int, sires: int) -> tuple[Tensor, Tensor]:
    """Sire and dam of every animal: a few sires of each generation have all offspring."""
    sire = torch.full((generations * size,), -1)
    dam = sire.clone()
    for g in range(1, generations):
        before, own = (g - 1) * size, slice(g * size, (g + 1) * size)
        chosen = before + torch.randperm(size)[:sires]
        sire[own] = chosen[torch.randint(sires, (size,))]
        dam[own] = before + torch.randint(size, (size,))
    return sire, dam


def breeding_values(sire: Tensor, dam: Tensor) -> Tensor:
    """Drawn generation after generation, of variance one in the base population."""
    pedigree = Pedigree.of(sire, dam)
    share = pedigree.mendelian(pedigree.inbreeding())
    values: Any = torch.cat([share.sqrt() * torch.randn(len(sire)), torch.zeros(1)])
    for members in pedigree.members()[1:]:
        values[members] += 0.5 * (values[sire[members]] + values[dam[members]])
    return torch.as_tensor(values[:-1])


if __name__ == "__main__":
    main()
