"""The MCP server: tools, prompts, resources and stdio."""
