"""What is said to the server: keys, scripts, commands, options and encodings. Opens no socket."""
