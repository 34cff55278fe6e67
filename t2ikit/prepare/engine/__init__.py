"""Long work in shards over ranks and processes, which goes on where it was killed."""
