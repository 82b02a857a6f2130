"""Kernel ridge regression in closed form: factor, solve, and the certificate that the solution is one."""
