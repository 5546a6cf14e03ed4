"""Loss spikes, and runs of skipped steps.

A loss is a spike if it exceeds the running mean by more than ``spike_deviations`` times the running mean distance of
neighbouring losses, which a long descent does not inflate. Both are exponential averages. A spike enters the distance
clipped to that bound and the mean clipped to twice the mean: one outlier does not hide the next, and a lasting change
becomes the new normal. The state depends on the losses only and is saved in the checkpoint, so that a resumed run
decides as an uninterrupted one.
"""

from dataclasses import dataclass

from bert_pretrain.errors import DivergedError

_DECAY = 0.98  # of the averages: they look back about 50 steps
_WARM_UP = 50  # losses before anything counts as a spike
_COLLAPSED = 2.0**-8  # a loss scale this small that still overflows: a smaller one will not help


@dataclass
class LossSpikeDetector:
    """Running statistics of the losses; saved with the run's progress."""

    mean: float = 0.0
    deviation: float = 0.0
    """Mean distance of neighbouring losses."""
    last: float = 0.0
    seen: int = 0
    """Losses so far."""
    spikes: int = 0
    skipped_in_a_row: int = 0

    def note_applied(self, loss: float, spike_deviations: float) -> str | None:
        """Add the loss of an applied step; returns a message if it is a spike."""
        self.skipped_in_a_row = 0
        warm = self.seen >= _WARM_UP
        spike = warm and loss > self.mean + spike_deviations * self.deviation
        message = f"loss {loss:.4f} is a spike: before it {self.mean:.4f} +- {self.deviation:.4f}" if spike else None
        self.spikes += spike
        distance = abs(loss - self.last) if self.seen else 0.0
        if warm:
            distance = min(distance, spike_deviations * self.deviation)
            loss = min(loss, 2.0 * self.mean)
        decay = min(_DECAY, self.seen / (self.seen + 1))  # at first a plain mean
        self.deviation = decay * self.deviation + (1 - decay) * distance
        self.mean = decay * self.mean + (1 - decay) * loss
        self.last = loss
        self.seen += 1
        return message

    def note_skipped(self, step: int, scale: float, scaled: bool, limit: int) -> None:
        """Count a skipped step after ``step``. Raises ``DivergedError`` if there were too many in a row."""
        self.skipped_in_a_row += 1
        if scaled and scale < _COLLAPSED:
            raise DivergedError(
                f"the loss scale collapsed to {scale:.3g} after step {step}: {self.skipped_in_a_row} steps in a row "
                "overflowed at any scale, so the loss itself or a weight is not finite; use precision.compute=bf16 or "
                "fp32, or a lower optimizer.lr, and go on from a checkpoint"
            )
        if self.skipped_in_a_row >= limit:
            raise DivergedError(
                f"{self.skipped_in_a_row} steps in a row had a gradient that is not finite, after step {step} "
                "(numerics.max_skipped_in_a_row); lower optimizer.lr or use precision.compute=bf16, and go on from a "
                "checkpoint"
            )
