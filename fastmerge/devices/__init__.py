"""The devices that merges run on: their names and their drivers."""
