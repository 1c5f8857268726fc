"""The memory budget, and the system's memory pressure."""
