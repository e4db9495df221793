"""What Redis keeps: records, their keys, names and values."""
