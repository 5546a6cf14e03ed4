"""``batch.micro_batch_size=auto`` on GPUs: the most samples that fit into memory, the same number on all ranks."""

from collections.abc import Callable

import torch

from bert_pretrain.data.collate import Shape, dummy_batch
from bert_pretrain.data.packing import packed_shapes
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import SharedError
from bert_pretrain.model.bert import PretrainingModel
from bert_pretrain.model.precision import MixedPrecision
from bert_pretrain.training.options import MEMORY_SHARE

_STATE_BYTES = 8  # per trained parameter: two float32 moments, not allocated before the first step


def most_that_fit(limit: int, fits: Callable[[int], bool], world: World) -> int:
    """The largest size up to ``limit`` that ``fits`` on every rank, 0 if none does: by doubling, then by bisection.

    All ranks try the same sizes in the same order.
    """
    best, too_large, size = 0, limit + 1, 1
    while best + 1 < too_large:
        with world.busy("looking for the largest micro-batch that fits"):
            own = fits(size)
        if all(world.gather(own)):
            best = size
        else:
            too_large = size
        size = min(2 * best, limit) if too_large > limit else (best + too_large) // 2
    return best


def memory_budget(device: torch.device, trained: int) -> float:
    """Bytes that this process may allocate beside the moments of ``trained`` parameters.

    Of what is free now and what torch's allocator holds already: other processes and libraries keep what they have.
    """
    free, _ = torch.cuda.mem_get_info(device)
    return MEMORY_SHARE * (free + torch.cuda.memory_reserved(device)) - _STATE_BYTES * trained


def micro_batch_that_fits(
    model: PretrainingModel,
    precision: MixedPrecision,
    world: World,
    limit: int,
    length: int,
    predictions: int,
    packing: bool = False,
) -> int:
    """Try forward and backward on dummy batches of ``length`` tokens, up to ``limit`` samples (``packing``: rows).

    The model is not yet compiled, which needs more memory than compiled. Synchronises the device; leaves no gradients.
    Raises ``SharedError`` if not even one sample fits.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    budget = memory_budget(world.device, trained)

    def fits(samples: int) -> bool:
        torch.cuda.reset_peak_memory_stats(world.device)
        shape = Shape(samples, length, samples * predictions, True)
        batch = dummy_batch(packed_shapes(samples, length, predictions)[-1] if packing else shape).to(world.device)
        try:
            with precision.autocast(), model.step():
                out = model(*batch.tensors())
            (out.mlm_loss + out.nsp_loss).backward()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # pieces of a size that did not fit would keep a smaller one from fitting
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
