"""Helpers for the tests of applications and stores. The contract suite for stores is in `store_contract`."""
