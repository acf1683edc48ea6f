"""Formal proofs of the exported units: the stream contract, equality with the reference, no overflow."""
