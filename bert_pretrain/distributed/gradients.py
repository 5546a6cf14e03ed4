"""How gradients travel between ranks: once a step, in buckets, while the last micro-batch's backward still runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bert_pretrain.distributed.options import CommunicationConfig
from bert_pretrain.distributed.world import World
from bert_pretrain.errors import ConfigError
from bert_pretrain.model.bert import PretrainingModel

Gradients = torch.futures.Future[torch.Tensor]


def in_type(dtype: torch.dtype) -> Callable[[object, dist.GradBucket], Gradients]:
    """A hook of DDP that sends gradients in ``dtype`` (torch's own for bf16 refuses gloo, which can add it)."""

    def reduce(_: object, bucket: dist.GradBucket) -> Gradients:
        whole = bucket.buffer()
        sent = (whole / dist.get_world_size()).to(dtype)  # divided first, so that no sum is too large for fp16
        future: Gradients = dist.all_reduce(sent, async_op=True).get_future()
        return future.then(lambda done: whole.copy_(done.value()[0]))

    return reduce


HOOKS = {"bf16": in_type(torch.bfloat16), "fp16": in_type(torch.float16)}
"""How gradients are reduced in 16 bit, by the name in ``communication.gradients``."""


def data_parallel(
    model: PretrainingModel, world: World, config: CommunicationConfig, loss_is_scaled: bool
) -> nn.Module:
    """``model`` with its gradients averaged over the ranks; itself where there is one rank.

    DDP groups its buckets anew after its first backward, and the groups decide in which order three and more ranks add
    up: a resumed run would differ from the undisturbed one in the last bit. So one sample of nothing goes through here.
    BERT's buffers are constants and need not travel. Raises ``ConfigError`` for fp16 gradients without a loss scale.
    """
    world.run_on_all_ranks(lambda: _check_type(config, loss_is_scaled))
    if world.size == 1:
        return model
    device_ids = [world.local_rank] if world.device.type == "cuda" else None
    network = DistributedDataParallel(
        model,
        device_ids,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        bucket_cap_mb=config.bucket_mb,
    )
    if config.gradients in HOOKS:
        network.register_comm_hook(None, HOOKS[config.gradients])
    tokens = torch.zeros((1, 2), dtype=torch.long, device=world.device)
    network.eval()  # in a shape that nothing is compiled for
    out = network(tokens, None, tokens, tokens[0, :1], tokens[0, :1], tokens[0, :1])
    ((out.mlm_loss + out.nsp_loss) * 0).backward()
    network.train()
    network.zero_grad(set_to_none=not model.speed.cuda_graphs)
    return network


def _check_type(config: CommunicationConfig, loss_is_scaled: bool) -> None:
    if config.gradients == "fp16" and not loss_is_scaled:
        raise ConfigError(
            "communication.gradients is 'fp16', but precision.compute is not: without its loss scale small gradients "
            "become 0; allowed here: fp32, bf16"
        )


def sync_gradients(network: nn.Module, now: bool) -> AbstractContextManager[None]:
    """The context of a forward and backward whose gradients are reduced over the ranks, or only added up here."""
    if now or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()
