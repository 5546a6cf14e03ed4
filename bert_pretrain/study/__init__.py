"""Repeats the comparisons of NVIDIA's NVLAMB article: optimizers, batch sizes, schedules."""
