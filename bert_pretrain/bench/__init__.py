"""Benchmarks of a training step and of the optimizer, as ratios within one run."""
