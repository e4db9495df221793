"""More of the random tests than the suite runs: histories against the model, and attacks on all tools."""
