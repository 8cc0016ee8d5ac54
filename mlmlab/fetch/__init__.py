"""Remote things become local files: a URL, or a repository on the Hub."""
