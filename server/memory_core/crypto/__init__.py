"""Keys, encryption and integrity codes."""
