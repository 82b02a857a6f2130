"""Multiple-kernel learning: the problem, the ridge, the objectives, the descent of Omega, and its calibration."""
