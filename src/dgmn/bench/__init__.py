"""Time and memory of the operators and of whole networks: `dgmn bench`."""
