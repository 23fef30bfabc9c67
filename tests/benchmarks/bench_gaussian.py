"""Gaussian integrals with their gradients, Ember's moments against autograd through the same steps.

Each line is a pattern of latent entries: the median time of a value, of a value with its gradient,
and of the same by autograd through the factorisation; the ratio (above 1: the moments are faster),
and how far apart the two gradients are. Both run in turn in one process, on one thread unless
``OMP_NUM_THREADS`` says otherwise. Run it with ``make bench``.
"""

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ember.inference.numerics.gaussian.blocks import block_log_integral, cholesky_or_nan
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.systems import gaussian_system

ROUNDS = 5
Function = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Print one line for each case."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, float64")
    print(f"{'value':>10} {'gradient':>12} {'autograd':>12} {'ratio':>6}  difference  case")
    compare_blocks("200,000 rows, one precision of 5 entries", 200_000, 5, shared=True)
    compare_blocks("200,000 rows, each its precision of 5 entries", 200_000, 5, shared=False)
    groups = state_space(1, 2, sequences=5_000)
    compare_system("5,000 groups of 2 effects", groups, groups_by_lapack)
    compare_system("5,000 x 200 crossed, 100,000 rows", crossed((5_000, 200), 100_000))
    compare_system("5,000 x 200 x 50 crossed, 100,000 rows", crossed((5_000, 200, 50), 100_000))
    compare_system("100,000 steps of 4 states", state_space(100_000, 4))
    compare_system("1,000 sequences of 100 steps of 2 states", state_space(100, 2, 1_000))
    compare_system("a pedigree of 20,000 animals", pedigree(generations=20, size=1_000, sires=20))


def compare_system(name: str, pattern: Pattern, rival: Function | None = None) -> None:
    """The system that suits a pattern, at a diagonally dominant precision."""
    began = time.perf_counter()
    system = gaussian_system(pattern)
    took = time.perf_counter() - began
    is_diagonal = pattern.rows == pattern.columns
    values = torch.where(is_diagonal, 0.0, torch.rand(len(pattern)) - 0.5)
    degree = torch.ones(pattern.count)
    for end in (pattern.rows, pattern.columns):
        degree = degree.index_add(0, end, values.abs())
    values = torch.where(is_diagonal, degree[pattern.rows], values)
    label = f"{name}: {system.description}, chosen in {took:.2f} s"
    compare(label, system.log_integral, rival or system.plain, torch.randn(pattern.count), values)


def compare_blocks(name: str, rows: int, size: int, shared: bool) -> None:
    """Blocks, against batched LAPACK."""
    root = torch.randn(size, size + 2) if shared else torch.randn(rows, size, size + 2)
    precision = root @ root.mT
    compare(name, block_log_integral, by_lapack, torch.randn(rows, size), precision)


def by_lapack(info: Tensor, precision: Tensor) -> Tensor:
    """The log integral but for its constant."""
    factor = cholesky_or_nan(precision)
    if precision.dim() == 2:
        white = torch.linalg.solve_triangular(factor, info.T, upper=False).T
    else:
        white = torch.linalg.solve_triangular(factor, info.unsqueeze(-1), upper=False).squeeze(-1)
    value: Tensor = 0.5 * white.square().sum(-1)
    return value - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def groups_by_lapack(info: Tensor, precision: Tensor) -> Tensor:
    """The same for groups of 2 effects, in the order of the pattern."""
    matrices = precision.view(-1, 3)[:, [0, 1, 1, 2]].view(-1, 2, 2)
    return by_lapack(info.view(-1, 2), matrices)


def compare(name: str, ours: Function, plain: Function, info: Tensor, precision: Tensor) -> None:
    """Print a line."""
    info.requires_grad_()
    precision.requires_grad_()

    def gradient(function: Function) -> list[Tensor]:
        return list(torch.autograd.grad(function(info, precision).sum(), [info, precision]))

    def value() -> None:
        with torch.no_grad():
            ours(info, precision)

    apart = max(
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(gradient(ours), gradient(plain), strict=True)
    )
    calls: list[Callable[[], object]] = [value, lambda: gradient(ours), lambda: gradient(plain)]
    times: list[list[float]] = [[], [], []]
    for _ in range(ROUNDS):
        for own, call in zip(times, calls, strict=True):
            began = time.perf_counter()
            call()
            own.append(time.perf_counter() - began)
    alone, mine, theirs = (1e3 * statistics.median(own) for own in times)
    print(
        f"{alone:>7.1f} ms {mine:>9.1f} ms {theirs:>9.1f} ms {theirs / mine:>5.1f}x  "
        f"{apart:<10.0e}  {name}",
        flush=True,
    )


def state_space(steps: int, states: int, sequences: int = 1) -> Pattern:
    """Sequences in which all states of a step are coupled to all of the next."""
    entries = torch.arange(sequences * steps * states).view(sequences, steps, states)
    other, one = torch.triu_indices(states, states)
    rows, columns = [entries[..., one].flatten()], [entries[..., other].flatten()]
    if steps > 1:
        now, following = entries[:, :-1, :, None], entries[:, 1:, None, :]
        for ends, each in ((columns, now), (rows, following)):
            ends.append(each.expand(-1, -1, states, states).flatten())
    return Pattern.of(entries.numel(), torch.cat(rows), torch.cat(columns))


def crossed(levels: tuple[int, ...], rows: int) -> Pattern:
    """Factors, and rows that read one level of each."""
    starts = [sum(levels[:i]) for i in range(len(levels))]
    read = [start + torch.randint(n, (rows,)) for start, n in zip(starts, levels, strict=True)]
    pairs = [(one, other) for i, one in enumerate(read) for other in read[:i]]
    ends = (torch.cat([pair[side] for pair in pairs]) for side in (0, 1))
    return Pattern.of(sum(levels), *ends)


def pedigree(generations: int, size: int, sires: int) -> Pattern:
    """Animals whose parents come from the generation before; few of its males are sires."""
    rows, columns = [], []
    for start in range(size, generations * size, size):
        animal = start + torch.arange(size)
        chosen = torch.randperm(size // 2)[:sires]
        sire = start - size + chosen[torch.randint(sires, (size,))]
        dam = start - size // 2 + torch.randint(size // 2, (size,))
        rows += [animal, animal, dam]
        columns += [sire, dam, sire]
    return Pattern.of(generations * size, torch.cat(rows), torch.cat(columns))


if __name__ == "__main__":
    main()
