"""The method, in the order of docs/method.md: pure functions of arrays."""
