"""Latency: blocks, tables of what was measured, and predictors of what was not."""
