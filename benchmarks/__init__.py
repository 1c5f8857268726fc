"""Benchmarks of the daemon and of peer servers, as ratios measured within one run."""
