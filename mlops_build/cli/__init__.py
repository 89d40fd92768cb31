"""The command line: a table of commands, one small module per command, which parses arguments, makes one call and prints."""
