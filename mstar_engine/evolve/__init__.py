"""The loop of self-evolution and what is measured on it."""
