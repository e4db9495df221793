"""The bulk engine: keeps the vectors of whole namespaces in memory, for requests that compare many vectors."""
