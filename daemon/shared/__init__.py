"""Modules that both processes use; imports neither gRPC nor MLX."""
