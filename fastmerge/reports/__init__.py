"""What commands print: the installation, the difference of two checkpoints, the distance from a copy."""
