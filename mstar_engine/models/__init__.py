"""Loading and saving Hugging Face checkpoints, prompts, the attention hook, the tiny default model."""
