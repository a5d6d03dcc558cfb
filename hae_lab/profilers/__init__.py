"""Profilers: models in, rows (pandas DataFrames, units in the column names) out."""
