"""Concepts and the prompts made from them: grammar, lists, templates, encoding and token alignment."""
