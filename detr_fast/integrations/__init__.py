"""Other projects' models and matchers."""
