"""Scheduling policy; pure."""
