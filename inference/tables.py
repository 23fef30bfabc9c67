"""Data that ship with Ember, and tables read from files."""

from ember.inference.inputs.tables import air_quality, law_school_test, old_faithful, read_table

__all__ = ["air_quality", "law_school_test", "old_faithful", "read_table"]
