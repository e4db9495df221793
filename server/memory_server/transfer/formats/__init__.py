"""InflightReads of other products' files."""
