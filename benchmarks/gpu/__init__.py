"""The GPU backends: what their kernels compile to, and one command that tests and times them on a GPU."""
