"""Block reconstruction behind a search of the grids: learned rounding of weights and learned steps of activations."""
