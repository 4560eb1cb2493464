"""Packings: how the codes of affine and palette formats lie in the files of other systems.

Each file here is one packing: a frozen class of the arrays that it stores, and a pair ``pack_…`` / ``unpack_…``.
``unpack(pack(x))`` is x to the last bit; if a packing must store a scale in another dtype, its docstring says so.
"""
