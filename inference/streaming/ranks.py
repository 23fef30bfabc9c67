"""Several processes, each with a share of the pieces: what they gather from each other.

They are those of ``torch.distributed``, as ``torchrun`` starts them. Each pass takes one collective
operation, in which every process learns the parts of all, and adds them up in the same order: so
all go on with the same parameters, to the bit.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from ember.inference.iteration.loop import DataLost

__all__ = ["ALONE", "Ranks", "ranks_at_hand"]

T = TypeVar("T")

MEETING = timedelta(minutes=1)  # for which processes wait for each other before they go on


@dataclass(frozen=True)
class Ranks:
    """The processes that share the data.

    Attributes:
        rank: The number of this one.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in their order.

        Raises:
            DataLost: If one of them no longer answers.
        """
        if self.count == 1:
            return [value]
        found: list[T | None] = [None] * self.count
        try:
            distributed.all_gather_object(found, value)
        except RuntimeError as error:
            raise _lost(error) from error
        return [each for each in found if each is not None]

    def meet(self) -> None:
        """Waits until all processes have come to the same place, but not for ever.

        Raises:
            DataLost: If one does not come.
        """
        if self.count == 1 or distributed.get_backend() != "gloo":
            return
        try:
            distributed.monitored_barrier(timeout=MEETING)
        except RuntimeError as error:
            raise DataLost(
                "they take all processes, and some do not ask for them; ask in every process, or "
                "in none."
            ) from error

    def stacked(self, vector: Tensor) -> Tensor:
        """The vectors of all processes, one a row.

        Raises:
            DataLost: If one of them no longer answers.
        """
        if self.count == 1:
            return vector.unsqueeze(0)
        device = _device(vector.device)
        own = vector.to(device)
        found = [torch.empty_like(own) for _ in range(self.count)]
        try:
            distributed.all_gather(found, own)
        except RuntimeError as error:
            raise _lost(error) from error
        return torch.stack(found).to(vector.device)


ALONE = Ranks()


def ranks_at_hand() -> Ranks:
    """The processes of the group that has been set up; this one alone if there is none.

    Raises:
        RuntimeError: If ``torchrun`` has started several, and they have not been set up.
    """
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ:
        raise RuntimeError(
            "torchrun has started several processes, but they do not know each other: call "
            "torch.distributed.init_process_group('gloo') first."
        )
    return ALONE


def _device(own: torch.device) -> torch.device:
    """Where the group's messages lie: nccl takes those on the GPU alone."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if own.type != "cpu" else own


def _lost(error: Exception) -> DataLost:
    reason = " ".join(str(error).split()).rstrip(".")
    return DataLost(f"another process of the group no longer answers ({reason})")
