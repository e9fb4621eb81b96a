"""What every Bellhop service stands on; knows no service."""
