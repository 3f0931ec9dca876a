"""What the CPU loops of the compiled extension execute: see ``compiled``."""
