"""The audit: who did what, numbered without gaps, signed when it happens and sealed into a chain soon after."""
