"""``batch.micro_batch_size=auto`` on GPUs: the most samples that fit into memory, the same number on all ranks."""

from collections.abc import Callable

import torch

from bert_pretrain.data.collate import Shape, dummy_batch
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import SharedError
from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.model.precision import MixedPrecision
from bert_pretrain.training.options import MEMORY_SHARE

_STATE_BYTES = 8  # per trained parameter: two float32 moments, not allocated before the first step


def most_that_fit(limit: int, fits: Callable[[int], bool], world: World) -> int:
    """The largest of 1, 2, 3, 4, 6, 8, 12, ... up to ``limit`` that ``fits`` on every rank; 0 if none does.

    All ranks try the same sizes in the same order.
    """
    best = 0
    for size in sorted({min(limit, part << power) for power in range(limit.bit_length()) for part in (1, 3)}):
        with world.busy("looking for the largest micro-batch that fits"):
            own = fits(size)
        if not all(world.gather(own)):
            break
        best = size
    return best


def micro_batch_that_fits(
    model: PretrainingModel, precision: MixedPrecision, world: World, limit: int, length: int, predictions: int
) -> int:
    """Try forward and backward on growing dummy batches of ``length`` tokens, up to ``limit`` samples.

    The model is not yet compiled, which needs more memory than compiled. Synchronises the device; leaves no gradients.
    Raises ``SharedError`` if not even one sample fits.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    budget = MEMORY_SHARE * torch.cuda.get_device_properties(world.device).total_memory - _STATE_BYTES * trained

    def fits(samples: int) -> bool:
        torch.cuda.reset_peak_memory_stats(world.device)
        batch = dummy_batch(Shape(samples, length, samples * predictions, True)).to(world.device)
        try:
            with precision.autocast(), model.step():
                out = model(*batch.tensors())
            (out.mlm_loss + out.nsp_loss).backward()
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.synchronize(world.device)
        return torch.cuda.max_memory_allocated(world.device) <= budget

    size = most_that_fit(limit, fits, world)
    model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    if size == 0:
        raise SharedError(
            f"batch.micro_batch_size is auto, but not even one sample of {length} tokens fits into the memory of "
            f"{torch.cuda.get_device_name(world.device)}; use a smaller model or shorter samples"
        )
    return size
