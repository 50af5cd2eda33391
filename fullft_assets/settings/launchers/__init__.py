"""The keys of the section `launcher`, one module a kind."""
