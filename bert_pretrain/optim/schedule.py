"""The learning rate as a pure function of the number of updates already applied.

Warm-up is linear; the decay is a polynomial, by default of what is left after the warm-up. The published code of
NVIDIA's BERT measures the decay from the very first update instead, so that its rate drops by a factor
sqrt(1 - w) at the end of warm-up (-15.4 % in phase 1), is 0 in the last update and NaN after it.
"""

from bert_pretrain.optim.options import ScheduleConfig


def learning_rate(k: int, base: float, schedule: ScheduleConfig) -> float:
    """Return the rate of the next update where ``k`` updates are applied already (k = 0 before the first).

    ``decay_from=warmup_end``: ``base (k+1)/W`` while k < W, then ``base ((T-k)/(T-W))^d``.
    ``decay_from=start``, with p = (k+1)/T: ``base p/w`` while p < w, then ``base (1-p)^d``.
    At least 0 and never NaN for ``base`` >= 0: at k >= T the base of the power is 0; below 0, k counts as 0.
    """
    total, warmup = schedule.total_steps, schedule.warmup_steps
    k = max(k, 0)
    if schedule.decay_from == "start":
        p = (k + 1) / total
        if p < schedule.warmup_proportion:
            return base * (p / schedule.warmup_proportion)
        return base * max(0.0, 1 - p) ** schedule.degree
    if k < warmup:
        return base * ((k + 1) / warmup)
    if k >= total:
        return base * 0.0**schedule.degree
    return base * ((total - k) / (total - warmup)) ** schedule.degree


def learning_rate_table(base: float, schedule: ScheduleConfig) -> list[float]:
    """Return ``learning_rate`` for k = 0 ... T.

    As a tensor on the device, indexed with a count that lives there too, it gives the rate without a synchronisation.
    """
    return [learning_rate(k, base, schedule) for k in range(schedule.total_steps + 1)]
