"""Writes the configuration files of MCP clients."""
