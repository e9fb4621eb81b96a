"""What every Bellhop service depends on; knows no service."""
