"""Figures of the engine, as Stats shows them."""
