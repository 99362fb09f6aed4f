"""The web page of `colony ui`: a server on the loopback interface, its API, and its files."""
