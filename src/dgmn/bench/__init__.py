"""`dgmn bench`: measures time and memory of the operators and of whole networks."""
