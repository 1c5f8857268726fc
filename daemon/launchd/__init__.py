"""The service of macOS: a LaunchAgent, and `launchctl`, which drives it. Neither gRPC nor MLX."""
