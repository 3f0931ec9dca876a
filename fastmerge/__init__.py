"""fastmerge: merge the weights of fine-tuned language models with fused kernels."""

__version__ = "0.1.0"
