"""Generated stubs of the public API, see `protos/mlx_sidecar/v1/sidecar.proto`."""
