"""The MCP tools, by domain."""
