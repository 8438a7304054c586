"""A believable company for demonstrations and measurements: `company.fill` puts it into an empty database.

Everything follows from a seed and from "now", except the texts of keys, which no one may know or be able to derive.
"""
