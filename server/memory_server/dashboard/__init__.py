"""The dashboard: pages and a small API over the same tools, identity and audit that agents meet at /mcp."""
