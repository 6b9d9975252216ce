"""The way to the server, and the embedded one: the only folder that imports redis."""
