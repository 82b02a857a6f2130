"""Multiple-kernel learning: Omega by projected gradient descent through the solve, its baselines and its meaning."""
