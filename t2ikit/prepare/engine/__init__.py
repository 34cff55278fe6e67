"""Long work in shards over ranks and processes, which continues after it was killed."""
