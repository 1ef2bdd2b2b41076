"""Structured answers: JSON schemas, grammars, guided decoding and tool calls."""
