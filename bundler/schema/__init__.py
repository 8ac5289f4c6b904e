"""JSON Schemas of every file we read or write, and the only user of jsonschema."""
