"""Prompts: chat templates, tokenizers, and the preparation of a request."""
