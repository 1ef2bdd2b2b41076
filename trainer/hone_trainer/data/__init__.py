"""The dataset: located, read, shaped into its format, tokenized and measured."""
