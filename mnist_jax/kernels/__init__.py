"""Array operations on a CPU: C kernels, their gradients, and sums in a fixed order."""
