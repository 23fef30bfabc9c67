"""Checks of answers to items, and of the groups that persons belong to."""

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.models.parts.checks import check_size

__all__ = ["check_answers", "check_enough_answers", "group_codes"]


def check_answers(answers: object, levels: int | None, model: str) -> int:
    """Return the number of levels of the answers (N, J); 2 unless the model is graded."""
    if not isinstance(answers, Tensor):
        raise TypeError(
            f"`answers` must be a torch.Tensor, not {type(answers).__name__}: convert it with "
            "torch.as_tensor."
        )
    if answers.dim() != 2 or not answers.numel():
        raise ValueError(
            f"`answers` must have shape (N, J), a row for each person and a column for each item, "
            f"not {tuple(answers.shape)}."
        )
    highest = _highest_code(answers)
    if model != "graded":
        if highest > 1:
            raise ValueError(
                f"`answers` must hold only 0, 1 and NaN for model={model!r}, but has the code "
                f"{highest}: recode it, or use model='graded'."
            )
        return 2
    levels = max(highest + 1, 2) if levels is None else check_size(levels, "levels")
    if levels <= highest or levels < 2:
        raise ValueError(
            f"`answers` has the code {highest}, but levels={levels} allows 0 to {levels - 1}: "
            f"pass levels={max(highest + 1, 2)} or more."
        )
    return levels


def _highest_code(answers: Tensor) -> int:
    """The highest code; refuses anything but whole numbers of at least 0, and NaN."""
    shown = answers.nan_to_num(nan=0.0, posinf=-1.0) if answers.is_floating_point() else answers
    lowest, highest = shown.aminmax() if shown.dtype != torch.bool else (0, shown.any())
    whole = not shown.is_floating_point() or bool((shown == shown.floor()).all())
    if not whole or int(lowest) < 0:
        raise ValueError("`answers` must hold codes 0, 1, 2, ..., and NaN where one is missing.")
    return int(highest)


def check_enough_answers(answers: Tensor, counts: Tensor) -> None:
    """Refuse fewer than two persons, and items that nobody has answered."""
    if not dist.is_validation_enabled():
        return
    if float(counts.sum()) <= 1:
        raise ValueError("`answers` are those of one person, which nothing can be estimated from.")
    if answers.is_floating_point():
        empty = answers.isnan().all(0)
        if bool(empty.any()):
            items = ", ".join(str(int(item)) for item in empty.nonzero())
            raise ValueError(f"`answers` has nothing but NaN for item(s) {items}: drop them.")


def group_codes(groups: object, count: int | None, answers: Tensor) -> tuple[Tensor, int]:
    """The group of each person (N,), and the number of groups."""
    try:
        codes = torch.as_tensor(groups, device=answers.device)
    except (RuntimeError, TypeError, ValueError):
        raise TypeError(
            f"`groups` must hold numbers, not {type(groups).__name__}: pass a tensor of codes."
        ) from None
    if codes.shape != (len(answers),):
        raise ValueError(
            f"`groups` must have shape ({len(answers)},), a code for each row of `answers`, not "
            f"{tuple(codes.shape)}."
        )
    whole = codes.long()
    if bool((whole != codes).any()) or bool((whole < 0).any()):
        raise ValueError("`groups` must hold codes 0, 1, 2, ...")
    highest = int(whole.max())
    count = highest + 1 if count is None else check_size(count, "group_count")
    if highest >= count:
        raise ValueError(
            f"`groups` has the code {highest}, but group_count={count} allows 0 to {count - 1}."
        )
    missing = sorted({*range(count)} - {*whole.tolist()})
    if missing and dist.is_validation_enabled():
        raise ValueError(
            f"`groups` has nobody with the code {missing[0]}: number the groups 0, 1, ... without "
            "leaving one out."
        )
    return whole, count
