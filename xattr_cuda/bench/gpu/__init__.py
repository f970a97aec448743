"""The benchmark on a GPU: every case and operator timed there, beside what the device itself can do."""
