"""The dashboard: pages and a small API with the same tools, identity and audit as /mcp."""
