"""Interactive parts of the command line: the conversation of `run`, and the full screen of `top`."""
