"""Self-contained pages: typed data in, one HTML file out, which asks nothing of any network."""
