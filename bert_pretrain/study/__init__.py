"""The article's comparisons as commands."""
