"""What the clouds have in common: the package that is sent, what runs it there, and the life of a remote job."""
