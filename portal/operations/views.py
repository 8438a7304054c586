"""Operators' pages for hosts, models and replicas."""
