"""The commands of ``t2ikit``, one file each: it parses, calls and prints."""
