"""What can be said of the kernels without a GPU: compiled, read, and held against the hardware."""
