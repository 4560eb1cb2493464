"""Weights of a graph in a number format: rounded when read, or solved and kept in files."""
