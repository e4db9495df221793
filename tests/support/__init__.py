"""What tests share: the real stack, models of the contract, builders and helpers."""
