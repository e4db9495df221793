"""Event streams and the callers that wait for them."""
