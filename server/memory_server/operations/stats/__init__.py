"""Statistics for agents, the dashboard and Prometheus."""
