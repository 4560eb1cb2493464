"""Storage forms: how codes in an affine or palette format lie in somebody's file, and back.

Each file here is one storage form: a frozen class of the arrays that it stores, and a pair ``pack_…`` / ``unpack_…``.
``unpack(pack(x))`` is x to the last bit; where a form forces a scale into another dtype, its docstring says so.
"""
