"""The constructive halves of theorems: tensors in, the start of a chain out."""
