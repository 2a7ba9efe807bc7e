"""Benchmark of a swapped model: time and peak memory as ratios to the unswapped model, measured in the same run."""
