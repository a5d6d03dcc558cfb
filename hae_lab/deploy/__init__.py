"""A trained model elsewhere: as a file for other runtimes, in eight bits, in a page that needs no installation."""
