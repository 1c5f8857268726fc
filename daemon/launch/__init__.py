"""Launching tools: each is told by its environment and by temporary files where a door of its own is."""
