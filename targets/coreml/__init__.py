"""Core ML: a stateful .mlpackage for iOS 18 and macOS 15, and how it is run and checked on any machine."""
