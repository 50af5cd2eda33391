"""Labelled spans of a text."""
