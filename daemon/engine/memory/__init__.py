"""The memory budget, room for requests and models, and the system's memory pressure."""
