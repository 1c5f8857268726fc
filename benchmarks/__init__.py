"""Benchmarks: real daemons over real sockets, ratios of one run."""
