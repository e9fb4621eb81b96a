"""The HTTP face, one file for each noun."""
