"""A believable company for demonstrations and measurements: `company.fill` puts it into an empty database.

Everything follows from a seed and from "now", except the texts of keys: those nobody may know or work out.
"""
