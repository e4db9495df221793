"""The audit: signed entries without gaps, sealed into a chain."""
