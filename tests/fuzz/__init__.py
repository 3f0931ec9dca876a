"""Fuzzing: files that nobody vouches for, made at random from right ones, and what must hold whatever is in them."""
