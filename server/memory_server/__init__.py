"""The MCP server: thin surfaces over use cases, use cases over search and Redis Functions."""
