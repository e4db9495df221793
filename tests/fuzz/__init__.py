"""Long runs of the random tests: histories against the model, and hostile calls of all tools."""
