"""Who may do what: tokens, the file that names them, and their limits."""
