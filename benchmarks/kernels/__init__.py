"""Inner functions on tensors in memory: fastmerge beside plain PyTorch and mergekit."""
