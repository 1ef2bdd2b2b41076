"""Checks of rows, tokens and templates that run while the dataset is prepared, before a GPU is held.

Rows and the tokenizer come in; warnings and refusals that name the row come out. `preconditions` runs before
tokenizing, `failures` explains why tokenizing failed, and `tokenized` runs every check of tokenized rows.
"""
