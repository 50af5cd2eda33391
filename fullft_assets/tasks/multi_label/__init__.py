"""Classification with several labels a row."""
