"""The embedding sidecar: Redis streams in, batches through a model, vectors committed back."""
