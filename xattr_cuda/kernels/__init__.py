"""Device code: its leaves are mapped here from the top-level folder `kernels` when the package is built."""
