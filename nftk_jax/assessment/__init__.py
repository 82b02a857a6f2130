"""Judging a learned model: metrics, baselines, intervals, identifiability, the certificate."""
