"""What tools answer: pydantic models, whose schemas clients see, each with a short text form for models to read."""
