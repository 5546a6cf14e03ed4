"""Evaluation on the held-out split.

In float32, whatever training computes in, so that the losses are those of plain ``transformers``, to rounding: with
``precision.tf32``, the default, GPUs from Ampere on round the factors of its products to TF32. A thread reads ahead, as
in training, into pinned memory on a GPU: the device never waits for the host.
"""

from collections.abc import Callable
from contextlib import closing

import numpy as np
import torch

from bert_pretrain.data.collate import HostToDeviceStream, MicroBatch
from bert_pretrain.data.dataset import SampleSet
from bert_pretrain.data.loader import heldout_batches
from bert_pretrain.data.prefetch import Prefetched
from bert_pretrain.distributed.preemption import StopRequest
from bert_pretrain.distributed.world import World
from bert_pretrain.model.bert import PretrainingModel, PretrainingSums
from bert_pretrain.optim.layers import upload
from bert_pretrain.training.metrics import Row
from bert_pretrain.training.step_result import HostCopy, without_next_sentence

_COLUMNS = 6  # PretrainingSums, masked tokens, samples
_AHEAD = 2  # micro-batches that are read in advance


def evaluate(
    model: PretrainingModel, heldout: SampleSet, micro_batch_size: int, world: World, stop: StopRequest
) -> Row | None:
    """Mean losses and accuracies over the whole held-out split, in float32, or TF32 (see above).

    None if a rank was asked to stop meanwhile.
    """
    sums = sum_losses(model, heldout, micro_batch_size, world, stop)
    return None if sums is None else mean_losses(sums[0], model.next_sentence)


def mean_losses(sums: list[float], next_sentence: bool) -> Row:
    """Losses and accuracies of a row of ``sum_losses``, those of the next sentence on request."""
    mlm, nsp, mlm_correct, nsp_correct, masked, samples = sums
    masked = max(masked, 1.0)
    row = {
        "eval_loss": mlm / masked + nsp / samples,
        "eval_mlm_loss": mlm / masked,
        "eval_nsp_loss": nsp / samples,
        "eval_mlm_accuracy": mlm_correct / masked,
        "eval_nsp_accuracy": nsp_correct / samples,
    }
    return row if next_sentence else without_next_sentence(row)


@torch.no_grad()
def sum_losses(
    model: PretrainingModel,
    heldout: SampleSet,
    micro_batch_size: int,
    world: World,
    stop: StopRequest,
    sources: np.ndarray | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> list[list[float]] | None:
    """The ``PretrainingSums``, masked tokens and samples of the held-out split; None if a rank was asked to stop.

    With ``sources``, the number of each sample's corpus, (N,), the same of each corpus in the rows that follow.
    ``report`` gets the number of samples that this rank has done, after every batch.

    Stop requests are all-reduced with each batch and read one batch later, so that all ranks return after the same
    batch, and the host waits only for what was all-reduced before it gave the device the batch that is now running.
    """
    batches = heldout_batches(heldout, micro_batch_size, world.rank, world.size, pin=world.device.type == "cuda")
    corpora = 0 if sources is None else 1 + int(sources.max())
    totals = torch.zeros((1 + corpora, _COLUMNS), dtype=torch.float64, device=world.device)
    requests: HostCopy | None = None
    to_device = HostToDeviceStream(world.device)
    done = first = heldout.samples * world.rank // world.size
    largest_part = -(-heldout.samples // world.size)
    model.eval()
    with closing(Prefetched(batches, _AHEAD)) as ahead:
        for _ in range(-(-largest_part // micro_batch_size)):  # the same number on all ranks; some have a batch less
            world.report_progress()
            own_request = torch.tensor(float(stop.requested)).to(world.device, non_blocking=True)
            previous_requests = requests
            requests = HostCopy(world.sum(own_request))
            with world.busy("reading the held-out shards"):
                batch = next(ahead, None)
            if batch is not None:
                inputs, size = to_device.copy(batch), len(batch.input_ids)
                if sources is None:
                    _add(totals[0], model(*inputs.tensors()), inputs.masked_labels, size)
                else:
                    _add_by_source(totals, model, batch, inputs, sources[done : done + size])
                done += size
                report(done - first)
            if previous_requests is not None and previous_requests.read() > 0:
                model.train()
                return None
    model.train()
    return HostCopy(world.sum(totals)).read()


def _add(totals: torch.Tensor, out: PretrainingSums, labels: torch.Tensor, samples: int) -> None:
    """Add what the model makes of some samples, whose masked tokens have the ``labels``, to ``totals`` (6,)."""
    totals[:4] += torch.stack([part.double() for part in out])
    totals[4] += (labels >= 0).sum()
    totals[5] += samples


def _add_by_source(
    totals: torch.Tensor, model: PretrainingModel, batch: MicroBatch, inputs: MicroBatch, source: np.ndarray
) -> None:
    """Add the sums of ``batch``, on the device ``inputs``, to the first of ``totals`` (1 + corpora, 6), and those of
    each corpus to its own.

    ``source`` (B,): the corpus of each sample. The encoder runs once, on the whole batch, as without corpora.
    """
    samples, length = batch.input_ids.shape
    labels = inputs.masked_labels
    next_sentence = inputs.next_sentence_labels
    places = inputs.segment_ids, inputs.masked_positions
    # (B + M, H), or (M, H) without a next-sentence head
    x = model.hidden_states(inputs.input_ids, inputs.attention_mask, *places)
    _add(totals[0], model.losses(x, labels, next_sentence), labels, samples)
    owner = source[batch.masked_positions.numpy() // length]
    real = batch.masked_labels.numpy() >= 0
    for number in np.unique(source):
        chosen = np.flatnonzero(source == number)
        tokens = np.flatnonzero((owner == number) & real)
        rows = np.concatenate([chosen, samples + tokens]) if model.next_sentence else tokens
        of_samples, of_tokens, of_rows = (upload(places, totals.device) for places in (chosen, tokens, rows))
        own_labels = labels.index_select(0, of_tokens)
        out = model.losses(x.index_select(0, of_rows), own_labels, next_sentence.index_select(0, of_samples))
        _add(totals[1 + number], out, own_labels, len(chosen))
