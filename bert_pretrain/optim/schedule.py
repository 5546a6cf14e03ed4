"""The learning rate as a pure function of the number of updates applied so far.

Linear warm-up, then polynomial decay of the remaining share of the steps after warm-up. NVIDIA's published BERT code
counts the decay from the first update instead, so that its rate drops by a factor sqrt(1 - w) at the end of warm-up
(-15.4 % in phase 1), is 0 in the last update and NaN after it.
"""

from bert_pretrain.optim.options import ScheduleConfig


def learning_rate(k: int, base: float, schedule: ScheduleConfig) -> float:
    """Return the rate of the next update after ``k`` applied updates (k = 0 before the first).

    ``decay_from=warmup_end``: ``base (k+1)/W`` while k < W, then ``base ((T-k)/(T-W))^d``.
    ``decay_from=start``, with p = (k+1)/T: ``base p/w`` while p < w, then ``base (1-p)^d``.
    At least 0 and never NaN for ``base`` >= 0: from k = T on the base of the power is 0; a negative k counts as 0.
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

    As a tensor on the device, indexed by a count on the device, it gives the rate without a synchronisation.
    """
    return [learning_rate(k, base, schedule) for k in range(schedule.total_steps + 1)]
