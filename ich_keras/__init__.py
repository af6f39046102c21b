"""Intracranial hemorrhage on head CT, in Keras."""

__version__ = "0.1.0"
