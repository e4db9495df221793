"""The vocabulary that the server and the sidecars share; it knows neither MCP nor a GPU."""
