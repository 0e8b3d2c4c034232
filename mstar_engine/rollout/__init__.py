"""The rollout engine: continuous batching over a prefix tree, on the model object that is being trained."""
