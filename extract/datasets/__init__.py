"""Data sets: clips, questions and answers from annotation files, one file a data set."""
