"""Random merges, each done in many ways: all of them must give the same bytes."""
