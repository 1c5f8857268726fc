"""Builds and measures the embedded model: the small checkpoint that demo and tests use."""
