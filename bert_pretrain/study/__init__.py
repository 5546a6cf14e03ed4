"""Compares optimizers, batch sizes and schedules, and judges what NVIDIA's NVLAMB article and others claim."""
