"""How a sample brackets a magnitude of a given rank, on every GPU backend."""

# Half of the width of a bracket, in standard deviations of a sampled rank. Of independent samples five mislead in two
# of three million; a miss costs two or three readings of one tensor, so that more would not pay.
DEVIATIONS = 5.0
# Room for the values in a bracket, times the number that is expected of it.
SPARE = 1.5
