"""Floor 2: where problems come from."""
