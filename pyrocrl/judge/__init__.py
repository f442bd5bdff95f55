"""Verdicts, scores and recommendations."""
