"""Other packages with fastmerge inside: a module gives an installed one our kernels, and takes them back."""
