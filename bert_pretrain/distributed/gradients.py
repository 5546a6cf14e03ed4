"""All-reduce of gradients: once a step, in buckets, overlapping the backward pass of the last micro-batch."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bert_pretrain.distributed.options import CommunicationConfig
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import SharedError
from bert_pretrain.model.bert import PretrainingModel

Gradients = torch.futures.Future[torch.Tensor]


def compress_hook(dtype: torch.dtype) -> Callable[[object, dist.GradBucket], Gradients]:
    """A DDP communication hook that sends gradients in ``dtype`` (torch's own for bf16 refuses gloo)."""

    def reduce(_: object, bucket: dist.GradBucket) -> Gradients:
        buffer = bucket.buffer()
        sent = (buffer / dist.get_world_size()).to(dtype)  # divided first, so that no sum overflows fp16
        future: Gradients = dist.all_reduce(sent, async_op=True).get_future()
        return future.then(lambda done: buffer.copy_(done.value()[0]))

    return reduce


HOOKS = {"bf16": compress_hook(torch.bfloat16), "fp16": compress_hook(torch.float16)}
"""Communication hooks by the value of ``communication.gradients``."""


def data_parallel(
    model: PretrainingModel, world: World, config: CommunicationConfig, loss_is_scaled: bool
) -> nn.Module:
    """``model`` in DDP, which averages its gradients over the ranks; ``model`` itself if there is one rank.

    Runs one dummy forward and backward: DDP rebuilds its buckets after its first backward, and the buckets decide the
    order in which three or more ranks sum, so that a resumed run would differ in the last bit from an uninterrupted
    one. BERT's buffers are constants and are not broadcast. Raises ``SharedError`` for fp16 gradients without a loss
    scale.
    """
    if config.gradients == "fp16" and not loss_is_scaled:
        raise SharedError(
            "communication.gradients is 'fp16', but precision.compute is not: without a loss scale small gradients "
            "become 0; allowed here: fp32, bf16"
        )
    if world.size == 1:
        return model
    device_ids = [world.local_rank] if world.device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 renames broadcast_buffers, which 2.11 needs
        network = DistributedDataParallel(
            model, device_ids, broadcast_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=config.bucket_mb
        )
    if config.gradients in HOOKS:
        network.register_comm_hook(None, HOOKS[config.gradients])
    tokens = torch.zeros((1, 2), dtype=torch.long, device=world.device)
    network.eval()  # in evaluation mode nothing is compiled for this shape
    out = network(tokens, None, tokens, tokens[0, :1], tokens[0, :1], tokens[0, :1])
    ((out.mlm_loss + out.nsp_loss) * 0).backward()
    network.train()
    network.zero_grad(set_to_none=not model.speed.cuda_graphs)
    return network


def sync_gradients(network: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Context of a forward and backward: ``now`` all-reduces the gradients, otherwise they only accumulate locally."""
    if now or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()
