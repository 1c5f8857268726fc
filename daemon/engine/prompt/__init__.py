"""Turns requests into prompts: chat templates, tokenizers, and the checks against the model."""
