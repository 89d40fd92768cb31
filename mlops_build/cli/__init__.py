"""The command line: a table of commands, one thin file per command. Arguments in, one call, output."""
