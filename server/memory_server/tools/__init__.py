"""The MCP tools: arguments in, a use case, an answer out."""
