"""Kafka as a producer: a group of consumers that brings records to the chain."""
