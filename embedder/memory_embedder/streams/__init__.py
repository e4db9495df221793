"""The pipeline from a Redis stream to a vector: read, batch, infer, commit or reply."""
