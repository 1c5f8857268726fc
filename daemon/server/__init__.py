"""The parent process: the gRPC server and everything that it decides; never imports MLX."""
