"""Writes the configuration by which MCP clients find this memory."""
