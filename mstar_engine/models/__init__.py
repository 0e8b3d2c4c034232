"""Floor 3: Hugging Face checkpoints: how they are loaded, prompted and, for the default run, built."""
