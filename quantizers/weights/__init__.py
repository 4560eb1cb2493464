"""Weights of a graph in a number format: rounded when they are read, or solved and kept in files."""
