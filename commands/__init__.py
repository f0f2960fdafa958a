"""The commands of the command line: each parses, makes one public call and prints what came of it."""
