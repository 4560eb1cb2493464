"""The MIL executor: a saved .mlpackage, run op by op in torch on any machine."""
