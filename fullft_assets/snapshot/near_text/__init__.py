"""Texts that are near each other: their words, their sketches, and the joins that find pairs."""
