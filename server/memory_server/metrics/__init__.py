"""What a server tells Prometheus."""
