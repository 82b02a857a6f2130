"""Which kernels a target needs: tests and intervals of its variance components."""
