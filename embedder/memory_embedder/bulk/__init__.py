"""The bulk engine: whole namespaces' vectors in memory, for what compares many with many or one with all."""
