"""The vault of sensitive memories and the audit."""
