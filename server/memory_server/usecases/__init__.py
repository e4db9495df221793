"""What agents can do, one module for each kind of act; knows neither MCP nor HTTP."""
