"""What is done to arrays before a kernel sees them: scaling, targets, draws of rows, padding."""
