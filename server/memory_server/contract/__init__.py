"""What tools accept and return, as pydantic models. Each answer has a short text form for models to read."""
