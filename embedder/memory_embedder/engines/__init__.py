"""Inference engines: how they are found, chosen and opened, and how they turn texts into vectors."""
