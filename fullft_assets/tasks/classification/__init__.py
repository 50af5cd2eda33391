"""Classification with one label a row."""
