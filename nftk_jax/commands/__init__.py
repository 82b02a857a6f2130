"""What the commands share: parsing, data flags, output directories, checkpoints."""
