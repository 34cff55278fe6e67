"""Scores by questions about an image that a model answers: DPG-Bench, DSG, TIFA."""
