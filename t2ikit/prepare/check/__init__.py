"""What is wrong or unfinished in a prepared data set."""
