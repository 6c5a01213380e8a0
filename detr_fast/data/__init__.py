"""Data sets, label maps, transforms, batching and checks."""
