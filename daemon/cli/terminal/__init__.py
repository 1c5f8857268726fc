"""Interactive parts of the command line."""
