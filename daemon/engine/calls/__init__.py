"""Calls before they run: a name becomes a model, a prompt becomes tokens."""
