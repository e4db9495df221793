"""The embedding sidecar: reads texts from Redis streams, embeds them in batches, and writes the vectors back."""
