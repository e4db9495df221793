"""The settings object and its sections."""
