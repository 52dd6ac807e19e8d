"""The sink `postgres`: the events as rows that people query, and that can be verified without the chain."""
