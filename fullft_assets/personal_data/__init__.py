"""personal data: found in texts, counted, and replaced by placeholders."""
