"""Readers of rows: JSON, CSV, Parquet and text files, each row with its place."""
