"""What the processes of a training tell each other."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_parallel() -> bool:
    """Whether this process is one of several that work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_divisor(number: Tensor | int, like: Tensor, least: float = 1.0) -> Tensor:
    """What a process divides its sum of losses by, so that the mean gradient is that of one process with all images.

    The objects of a batch are not spread evenly. Were each process to divide by its own number, an object would count
    less beside many others than beside few.

    Args:
        number: how much this process has of what the losses are divided by, for instance positive anchors.
        like: gives the dtype and the device.
        least: a smaller number becomes this one.

    Returns:
        The number in all processes, divided by the number of processes; a scalar.
    """
    total = torch.as_tensor(number, device=like.device)
    if not is_parallel():
        return total.clamp(min=least).to(like.dtype)
    total = total.clone()  # the sum is written into it
    dist.all_reduce(total)
    return total.clamp(min=least).to(like.dtype) / dist.get_world_size()


def to_first(value: Any) -> list[Any]:
    """The values of all processes, in the first process; nothing in the others."""
    if not is_parallel():
        return [value]
    values: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def from_first(value: Any) -> Any:
    """The value of the first process, in all processes."""
    if not is_parallel():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
