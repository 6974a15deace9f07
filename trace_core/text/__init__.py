"""What users write, and the rows that a model reads of it: concepts, templates, keep list, encoding,
alignment.
"""
