"""Notations of tool calls: one module for each, all behind `notation.Notation`."""
