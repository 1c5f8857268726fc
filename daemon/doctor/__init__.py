"""The doctor: what has to be so for the daemon to work well on this machine, looked at. Neither gRPC nor MLX."""
