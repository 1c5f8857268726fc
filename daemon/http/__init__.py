"""The HTTP door: a process of its own that serves the APIs of OpenAI and others, as a client of the daemon."""
