"""How closely an engine must match float32, and the sentences that check it."""

from __future__ import annotations

import numpy as np

from memory_core.records.vectors import Matrix

MIN_COSINE = 0.999
"""Lowest cosine of a floating-point engine, also in half precision, to fp32 with the same weights."""
MIN_COSINE_INT8 = 0.998
"""Lowest cosine of int8 arithmetic or int8 weights to fp32."""

SENTENCES = [
    "The cat sleeps on the warm roof of the house.",
    "We agreed to ship the release on Friday, after the migration of the user table has run once on staging.",
    "ValueError: could not convert string to float: 'n/a' (line 42 of loader.py)",
    "Anna prefers tea in the morning and told Ben so when he visited her in Lisbon last spring.",
    "def mean(values): return sum(values) / len(values) if values else 0.0",
    "Die Besprechung wurde auf Dienstag um 14:30 Uhr verschoben; bitte bringt die Zahlen des letzten Quartals mit.",
    "¿Dónde están las llaves del almacén?",
    "The invoice 2024-0815 over 1,299.00 EUR is due in 30 days.",
    "yes",
    "In the second experiment the learning rate was warmed up over two thousand steps and then decayed to a tenth of"
    " its peak, which lowered the validation loss by four percent but made the training twice as slow on one GPU.",
    "会議は来週の月曜日に延期されました。",
    "What did the customer say about the delivery delays, and who promised to call back?",
]
"""Of many kinds and lengths, so that a precision that fails on one kind of text does not pass."""


def lowest_cosine(left: Matrix, right: Matrix) -> float:
    """The lowest cosine between rows at the same position. Both arguments are unit rows, shape (n, dimension)."""
    return float(np.einsum("ij,ij->i", left, right).min())
