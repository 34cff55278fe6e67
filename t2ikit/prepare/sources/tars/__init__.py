"""Photos in tars that are not unpacked: the members of a tar, WebDataset samples, and the listing of all forms."""
