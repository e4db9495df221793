"""The files of others: one small reader for each format, all of which give the same records."""
