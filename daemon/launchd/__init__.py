"""The daemon as a service of macOS: its LaunchAgent, and `launchctl`. Imports neither gRPC nor MLX."""
