"""The worst case of each Redis Function within the documented limits, on one busy namespace."""
