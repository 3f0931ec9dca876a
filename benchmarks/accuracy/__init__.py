"""How far every method is from its formula in float64, on every backend and dtype, beside what its peer makes of it."""
