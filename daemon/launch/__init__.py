"""Starts coding tools. Each gets an HTTP door of its own, and the address by its environment or temporary files."""
