"""The HTTP server: MCP, REST, probes and metrics."""
