"""Scheduling policy: which request is next and how much is computed; pure, without arrays and messages."""
